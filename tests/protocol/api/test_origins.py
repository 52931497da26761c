"""Origins: each character of a text has one, however the text was divided."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edgecosine.protocol.api.answers import StreamPart, parse_piece, render_piece
from edgecosine.protocol.api.origins import Origins, Run, TokenOrigins, cut, joined

NAMES = st.sampled_from(["", "a", "b", "a+b"])
RUNS = st.lists(st.tuples(st.integers(0, 5), NAMES), max_size=8)


def spelt(runs: list[Run] | Origins) -> list[str]:
    """The origin of each character."""
    return [name for length, name in runs for _ in range(length)]


@given(RUNS)
def test_joined_runs_say_the_same_in_fewer_runs(runs: list[Run]) -> None:
    found = joined(runs)
    assert spelt(found) == spelt(runs)
    assert all(one[1] != other[1] for one, other in pairwise(found))


@given(RUNS, st.integers(0, 30), st.integers(0, 30))
def test_cut_has_the_characters_between_and_the_target_beyond(
    runs: list[Run], start: int, length: int
) -> None:
    whole = spelt(runs) + [""] * 60
    assert spelt(cut(runs, start, start + length)) == whole[start : start + length]


@given(st.lists(st.tuples(st.integers(0, 4), NAMES), min_size=1, max_size=12), st.data())
def test_tokens_keep_their_origins_when_their_text_comes_in_pieces(
    tokens: list[tuple[int, str]], data: st.DataObject
) -> None:
    origins = TokenOrigins()
    origins.add(name for _, name in tokens)
    ends, total = [], 0
    for length, _ in tokens:
        total += length
        ends.append(total)
    found, left = list[str](), total
    while left:
        size = data.draw(st.integers(1, left))
        found += spelt(origins.take(ends, size))
        left -= size
    assert found == spelt(tokens)


def test_stream_part_carries_origins() -> None:
    part = StreamPart(3, "to be", is_last=False, origins=((3, "d1"), (2, "")))
    assert parse_piece(render_piece(part)) == part
