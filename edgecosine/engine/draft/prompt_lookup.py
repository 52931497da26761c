"""A drafter without a model (prompt lookup; Saxena 2023): finds the longest suffix of the text that
occurred before and drafts the tokens that followed it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgecosine.engine.base import DraftEngine, DraftResult, DraftWork, never
from edgecosine.engine.options import Loaded
from edgecosine.models import NGRAM

LONGEST = 8
"""Most tokens of a suffix."""


def load_ngram() -> tuple[DraftEngine, Loaded]:
    """The drafter and its description; no files are read."""
    return NgramDrafter(), Loaded(NGRAM, "none", None, 1 << 30, "none", 0)


class NgramDrafter:
    """Drafts by repetition; implements `DraftEngine`."""

    def __init__(self) -> None:
        self._indexes: dict[str, _SuffixIndex] = {}

    def draft(
        self, batch: Sequence[DraftWork], is_awaited: Callable[[], bool] = never
    ) -> list[DraftResult]:
        """Draft the tokens that last followed the longest repeated suffix of each sequence."""
        return [self._draft(work) for work in batch]

    def release(self, key: str) -> None:
        """Delete the index of the request."""
        self._indexes.pop(key, None)

    def _draft(self, work: DraftWork) -> DraftResult:
        index = self._indexes.setdefault(work.key, _SuffixIndex())
        index.reconcile(work.tokens)
        start, matched = index.longest_match()
        if not matched:
            return DraftResult((), ())
        tokens = tuple(index.tokens[start : start + work.num_tokens])
        confidence = 1.0 - 0.5**matched
        return DraftResult(tokens, (confidence,) * len(tokens))


class _SuffixIndex:
    """Position after the last occurrence of each n-gram of a growing sequence."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._last: dict[tuple[int, ...], int] = {}

    def reconcile(self, tokens: Sequence[int]) -> None:
        tokens = list(tokens)
        if self.tokens != tokens[: len(self.tokens)]:
            self.tokens, self._last = [], {}
        for token in tokens[len(self.tokens) :]:
            end = len(self.tokens)
            for size in range(1, min(LONGEST, end) + 1):
                self._last[tuple(self.tokens[end - size : end])] = end
            self.tokens.append(token)

    def longest_match(self) -> tuple[int, int]:
        """Position after the last occurrence of the longest repeated suffix, and its length."""
        end = len(self.tokens)
        for size in range(min(LONGEST, end), 0, -1):
            found = self._last.get(tuple(self.tokens[end - size :]))
            if found is not None:
                return found, size
        return 0, 0
