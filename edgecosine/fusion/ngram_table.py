"""Which token mostly followed the newest tokens of a text in earlier texts.

The table is that of a branch predictor with tagged entries (TAGE; Seznec and Michaud, 2006): an
entry has a token and a counter, which rises when the token comes again and falls when another one
does. A token with a counter of 1 is replaced then. Entries share slots, so the table never grows.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

LONGEST = 3
"""Most tokens of an n-gram."""
MOST_SLOTS_LOG = 18
MOST_COUNT = 7
_WORD, _TAG = (1 << 64) - 1, (1 << 32) - 1
_FACTOR = 0x9E3779B97F4A7C15
"""Odd, near 2^64 over the golden ratio: its products fill the high bits evenly (Knuth)."""


class NgramTable:
    """Entries for n-grams of 1 to `LONGEST` tokens, in 2^`slots_log` slots of nine bytes."""

    def __init__(self, slots_log: int = MOST_SLOTS_LOG) -> None:
        size = 1 << slots_log
        self._shift = 64 - slots_log
        self._tags, self._tokens = array("I", bytes(4 * size)), array("I", bytes(4 * size))
        self._counts = bytearray(size)

    def copy(self) -> NgramTable:
        """A table with the same entries."""
        made = NgramTable(64 - self._shift)
        made._tags, made._tokens = self._tags[:], self._tokens[:]
        made._counts = self._counts[:]
        return made

    def put(self, ngram: Sequence[int], token: int, count: int) -> None:
        """Add an entry, unless its slot has one with a higher count."""
        *_, (slot, tag) = self._places(ngram, len(ngram))
        if count > self._counts[slot]:
            self._tags[slot], self._tokens[slot], self._counts[slot] = tag, token, count

    def entry(self, ngram: Sequence[int]) -> tuple[int, int]:
        """The token behind an n-gram, and its count; a count of 0 without an entry."""
        *_, (slot, tag) = self._places(ngram, len(ngram))
        is_there = self._counts[slot] and self._tags[slot] == tag
        return (self._tokens[slot], self._counts[slot]) if is_there else (0, 0)

    def learn(self, tokens: Sequence[int], start: int) -> None:
        """Learn which tokens from `start` on followed those before them."""
        tags, entries, counts = self._tags, self._tokens, self._counts
        for end in range(max(1, start), len(tokens)):
            token = tokens[end]
            for slot, tag in self._places(tokens, end):
                count = counts[slot]
                if count and tags[slot] == tag and entries[slot] == token:
                    counts[slot] = min(MOST_COUNT, count + 1)
                elif count > 1:
                    counts[slot] = count - 1
                else:
                    tags[slot], entries[slot], counts[slot] = tag, token, 1

    def next_token(self, tokens: Sequence[int]) -> tuple[int, float] | None:
        """The token most likely to follow, and its confidence; None without an entry."""
        best, best_confidence = 0, 0.0
        for shorter, (slot, tag) in enumerate(self._places(tokens, len(tokens))):
            count = self._counts[slot]
            if count and self._tags[slot] == tag:
                confidence = _confidence(1 + shorter, count)
                if confidence > best_confidence:
                    best, best_confidence = self._tokens[slot], confidence
        return (best, best_confidence) if best_confidence else None

    def _places(self, tokens: Sequence[int], end: int) -> Iterator[tuple[int, int]]:
        """The slot and the tag of each n-gram before `end`, the shortest first."""
        hashed = 0
        for at in range(end - 1, max(-1, end - 1 - LONGEST), -1):
            hashed = ((hashed ^ (tokens[at] + 1)) * _FACTOR) & _WORD
            # The high bits depend on all bits of the token.
            hashed ^= hashed >> 29
            yield hashed >> self._shift, hashed & _TAG


def _confidence(size: int, count: int) -> float:
    """Acceptance expected of a token behind an n-gram of `size` tokens."""
    return 0.1 * count + 0.03 * (size - 1)
