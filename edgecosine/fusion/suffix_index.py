"""Finds where the newest tokens of a text occurred in it before (prompt lookup; Saxena 2023)."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 8
"""Most tokens of a suffix."""


class SuffixIndex:
    """Position after the last occurrence of each n-gram of a growing sequence."""

    def __init__(self, sizes: Sequence[int] = tuple(range(LONGEST, 0, -1))) -> None:
        """`sizes` are the tokens of the n-grams, the largest first."""
        self.tokens: list[int] = []
        self._sizes = sizes
        self._last: dict[tuple[int, ...], int] = {}
        """Without the newest n-grams, which end the sequence."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        for token in tokens:
            end = len(self.tokens)
            for size in self._sizes:
                if size <= end:
                    self._last[tuple(self.tokens[end - size : end])] = end
            self.tokens.append(token)

    def longest_match(self) -> tuple[int, int]:
        """Position after the last occurrence of the longest repeated suffix, and its length."""
        end = len(self.tokens)
        for size in self._sizes:
            found = self._last.get(tuple(self.tokens[end - size :])) if size <= end else None
            if found is not None:
                return found, self._length(found, size)
        return 0, 0

    def _length(self, found: int, size: int) -> int:
        end = len(self.tokens)
        while size < min(LONGEST, found) and (
            self.tokens[found - size - 1] == self.tokens[end - size - 1]
        ):
            size += 1
        return size
