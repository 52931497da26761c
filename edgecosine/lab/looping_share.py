"""The share of a text that repeats itself. Small models repeat themselves under greedy decoding,
which raises the acceptance rate of every kind of speculation."""

from __future__ import annotations

from collections.abc import Sequence

LOOP_GRAM = 8


def loop_share(tokens: Sequence[int], gram: int = LOOP_GRAM) -> float:
    """Share of the tokens that are inside an n-gram which occurs more than once, from 0 to 1."""
    places: dict[tuple[int, ...], list[int]] = {}
    for start in range(len(tokens) - gram + 1):
        places.setdefault(tuple(tokens[start : start + gram]), []).append(start)
    inside = {
        start + offset
        for starts in places.values()
        if len(starts) > 1
        for start in starts
        for offset in range(gram)
    }
    return len(inside) / len(tokens)
