"""How much of a text repeats itself. Small models do so under greedy decoding, which raises the
acceptance of all speculation."""

from __future__ import annotations

from collections.abc import Sequence

LOOP_GRAM = 8


def loop_share(tokens: Sequence[int], gram: int = LOOP_GRAM) -> float:
    """Share of the tokens inside an n-gram that occurs more than once, 0 to 1."""
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
