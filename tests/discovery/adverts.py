"""Adverts for tests of the discovery room."""

from __future__ import annotations

from typing import Any

from edgecosine.discovery.peer import Advert


def advert(**changes: Any) -> Advert:
    """A drafter that fits the target of most tests, with some fields changed."""
    fields: dict[str, Any] = {
        "node_id": "drafter-1",
        "incarnation": 5,
        "cluster": "lab",
        "protocol": 1,
        "role": "drafter",
        "model": "toy",
        "vocabulary": "",
        "addresses": ("10.0.0.5",),
        "port": 7000,
    }
    return Advert(**(fields | changes))
