"""A drafter without a model (prompt lookup; Saxena 2023): finds the longest suffix of the text that
occurred before and drafts the tokens that followed it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgecosine.engine.base import DraftEngine, DraftResult, DraftWork, never
from edgecosine.engine.options import Loaded
from edgecosine.fusion.suffix_index import SuffixIndex
from edgecosine.models import NGRAM


def load_ngram() -> tuple[DraftEngine, Loaded]:
    """The drafter and its description; no files are read."""
    return NgramDrafter(), Loaded(NGRAM, "none", None, 1 << 30, "none", 0)


class NgramDrafter:
    """Drafts by repetition; implements `DraftEngine`."""

    def __init__(self) -> None:
        self._indexes: dict[str, SuffixIndex] = {}

    def draft(
        self, batch: Sequence[DraftWork], is_interrupted: Callable[[int], bool] = never
    ) -> list[DraftResult]:
        """Draft the tokens that last followed the longest repeated suffix of each sequence."""
        return [self._draft(work) for work in batch]

    def release(self, key: str) -> None:
        """Delete the index of the request."""
        self._indexes.pop(key, None)

    def _draft(self, work: DraftWork) -> DraftResult:
        index, tokens = self._indexes.get(work.key), list(work.tokens)
        if index is None or index.tokens != tokens[: len(index.tokens)]:
            index = self._indexes[work.key] = SuffixIndex()
        index.extend(tokens[len(index.tokens) :])
        start, matched = index.longest_match()
        if not matched:
            return DraftResult((), ())
        drafted = tuple(index.tokens[start : start + work.num_tokens])
        confidence = 1.0 - 0.5**matched
        return DraftResult(drafted, (confidence,) * len(drafted))
