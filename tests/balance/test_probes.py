"""Probes: which drafter is probed beside a verification, and how often."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgecosine.balance.probes import FIRST_PROBES, PROBE_EVERY, choose_probe, may_probe, pace_of
from tests.balance.test_plan import candidate, candidates

KNOWN, GOOD = candidate("known", 0.2), candidate("good", 0.9)
NEW = replace(candidate("new", 0.3), evidence=0.0)
counts = st.integers(0, 40)


@given(st.lists(candidates, max_size=5), counts, counts, st.integers(1, 9), st.booleans())
def test_many_requests_make_no_probe_between_due_rounds(
    others: list[object], num_probes: int, since: int, pace: int, is_plain: bool
) -> None:
    chosen = choose_probe(others, num_probes, since, pace, is_plain=is_plain)
    assert chosen is None or chosen in others
    if may_probe(since, pace) and since >= PROBE_EVERY * pace:
        assert (chosen is None) == (not others)


def test_interval_of_probes_grows_with_the_number_of_requests() -> None:
    many, resting = (pace_of(4, is_resting=is_resting) for is_resting in (False, True))
    assert may_probe(1, pace_of(1, is_resting=False))
    assert not may_probe(4 * PROBE_EVERY - 1, many)
    assert may_probe(4 * PROBE_EVERY, many)
    assert not may_probe(4 * PROBE_EVERY, resting)


def test_unknown_drafters_are_probed_first_and_only_briefly() -> None:
    assert choose_probe([KNOWN, NEW], 1, 0, 1, is_plain=False) is NEW
    assert choose_probe([KNOWN, NEW], 2 * FIRST_PROBES, 0, 1, is_plain=False) is None
    assert choose_probe([KNOWN], 0, 0, 1, is_plain=False) is None


def test_due_probes_go_to_all_drafters_in_turn() -> None:
    probed = [choose_probe([KNOWN, NEW], n, PROBE_EVERY, 1, is_plain=False) for n in range(4)]
    assert probed == [KNOWN, NEW, KNOWN, NEW]


def test_promising_drafter_gets_three_of_four_probes_beside_plain_plans() -> None:
    probed = [choose_probe([GOOD, KNOWN], n, PROBE_EVERY, 1, is_plain=True) for n in range(8)]
    assert [drafter is GOOD for drafter in probed] == [True, True, True, False] * 2
    assert choose_probe([GOOD, KNOWN], 0, 2, 1, is_plain=True) is GOOD
    assert choose_probe([GOOD, KNOWN], 0, 1, 1, is_plain=True) is None
    assert choose_probe([KNOWN], 0, 2, 1, is_plain=True) is None


def test_probes_of_a_promising_drafter_become_rarer() -> None:
    due = [
        next(n for n in range(100) if choose_probe([GOOD], probes, n, 1, is_plain=True) is GOOD)
        for probes in (0, 4, 8)
    ]
    assert due == [2, 4, PROBE_EVERY]
