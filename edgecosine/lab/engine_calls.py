"""Calls of engines and of transformers that several measurements make."""

from __future__ import annotations

from collections.abc import Sequence

from transformers.utils import logging as transformers_logging

from edgecosine.engine.base import Prefilling, TargetEngine, VerifyWork
from edgecosine.protocol.wire.tree import TokenTree


def quiet_transformers() -> None:
    """Turn off transformers' warnings and progress bars."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def prefill(engine: TargetEngine, works: Sequence[VerifyWork]) -> None:
    """Step until the engine holds the prompts of all sequences."""
    while any(isinstance(outcome, Prefilling) for outcome in engine.step(works).outcomes):
        pass


def forked_tree(one: Sequence[int], other: Sequence[int]) -> TokenTree:
    """A tree of two branches from the root."""
    split, size = len(one), len(one) + len(other)
    parents = (*range(-1, split - 1), *([-1] if other else []), *range(split, size - 1))
    return TokenTree((*one, *other), parents, (1.0,) * size, (1,) * size)
