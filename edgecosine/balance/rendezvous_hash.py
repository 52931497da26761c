"""Assigns requests to targets by highest random weight (Thaler and Ravishankar, IEEE/ACM Trans.
Networking 1998): nodes that see the same targets choose the same one, and when a target leaves only
its own requests move."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def weight(key: str, node_id: str) -> bytes:
    """The weight of a target for a request; different for any two targets."""
    text = f"{key}\0{node_id}".encode()
    return hashlib.blake2b(text, digest_size=8).digest() + node_id.encode()


def chosen(key: str, node_ids: Iterable[str]) -> str:
    """The target with the highest weight.

    Raises ValueError without targets.
    """
    return max(node_ids, key=lambda node_id: weight(key, node_id))
