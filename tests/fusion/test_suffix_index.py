"""Repeated suffixes of a growing text are found as a search of the whole text finds them."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from edgecosine.fusion.suffix_index import LONGEST, SuffixIndex


def searched(tokens: Sequence[int]) -> tuple[int, int]:
    """The last earlier end of the longest suffix that occurred before, and the suffix's length."""
    for size in range(min(LONGEST, len(tokens)), 0, -1):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[len(tokens) - size :]:
                return end, size
    return 0, 0


texts = st.lists(st.integers(0, 2), max_size=40)


@given(texts, st.integers(1, 7))
def test_longest_repeated_suffix_is_found_however_the_text_grew(
    tokens: list[int], step: int
) -> None:
    index = SuffixIndex()
    for start in range(0, len(tokens), step):
        index.extend(tokens[start : start + step])
    assert index.tokens == tokens
    assert index.longest_match() == searched(tokens)


@given(texts)
def test_fewer_sizes_find_a_suffix_that_occurred_before(tokens: list[int]) -> None:
    index = SuffixIndex((4, 2))
    index.extend(tokens)
    end, size = index.longest_match()
    assert (size == 0) == (searched(tokens)[1] < 2)
    assert not size or tokens[end - size : end] == tokens[len(tokens) - size :]
