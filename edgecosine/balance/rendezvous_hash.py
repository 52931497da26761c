"""Which of several targets takes a request: highest random weight, so all who see the same targets
choose the same one, and a target that goes moves nobody's requests but its own (Thaler and
Ravishankar, IEEE/ACM Trans. Networking 1998)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def weight(key: str, node_id: str) -> bytes:
    """How much a request belongs to a target; different for any two targets."""
    text = f"{key}\0{node_id}".encode()
    return hashlib.blake2b(text, digest_size=8).digest() + node_id.encode()


def chosen(key: str, node_ids: Iterable[str]) -> str:
    """The target of a request.

    Raises ValueError without targets.
    """
    return max(node_ids, key=lambda node_id: weight(key, node_id))
