"""Acceptance rates of a drafter, over all requests and within one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgecosine.fusion.acceptance_rates import (
    FIRST_RATE,
    REQUEST_MEMORY,
    AcceptanceRate,
    DrafterRecord,
    RequestRates,
)

counts = st.integers(0, 200)


@given(st.lists(st.tuples(counts, counts), max_size=20), st.floats(0, 1))
def test_rate_is_between_the_prior_and_the_evidence(
    evidence: list[tuple[int, int]], prior: float
) -> None:
    rate = AcceptanceRate(memory=100.0)
    for hits, misses in evidence:
        rate.observe(hits, misses)
    seen = rate.hits / rate.evidence if rate.evidence else prior
    mean = rate.mean(prior, 2.0)
    assert min(prior, seen) - 1e-9 <= mean <= max(prior, seen) + 1e-9


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=100))
def test_evidence_is_never_more_than_memory_and_the_last_round(
    evidence: list[tuple[int, int]],
) -> None:
    rate = AcceptanceRate(memory=50.0)
    for hits, misses in evidence:
        rate.observe(hits, misses)
        assert rate.evidence <= 50.0 + 20
        assert rate.hits >= 0.0 <= rate.misses


def test_old_evidence_fades() -> None:
    rate = AcceptanceRate(REQUEST_MEMORY)
    for _ in range(100):
        rate.observe(3, 0)
    assert rate.mean(FIRST_RATE, 2.0) > 0.9
    for _ in range(200):
        rate.observe(0, 1)
    assert rate.mean(FIRST_RATE, 2.0) < 0.1


def test_new_request_starts_from_the_record() -> None:
    record, rates = DrafterRecord(), RequestRates()
    assert rates.estimate("d", record) == FIRST_RATE
    record.rate.observe(90, 10)
    assert rates.estimate("d", record) == record.prior > 0.8
    assert rates.evidence("d") == 0.0


def test_requests_own_rounds_outweigh_the_record() -> None:
    record, rates = DrafterRecord(), RequestRates()
    record.rate.observe(90, 10)
    for _ in range(20):
        rates.observe("d", 0, 1)
    assert rates.estimate("d", record) < 0.15
    assert rates.estimate("another", record) == record.prior


def test_improbable_run_of_misses_discards_hits() -> None:
    changed, even = AcceptanceRate(60.0), AcceptanceRate(60.0)
    for _ in range(100):
        changed.observe_change(4, 0)
        even.observe_change(1, 1)
    changed.observe_change(0, 1)
    assert changed.mean(0.5, 2.0) > 0.9
    for _ in range(7):
        changed.observe_change(0, 1)
        even.observe_change(0, 1)
    assert changed.mean(0.5, 2.0) < 0.3
    assert even.mean(0.5, 2.0) > 0.4
    changed.observe_change(4, 0)
    assert changed.run_probability == 1.0


def test_rejected_draft_raises_doubts_in_a_drafter_whose_drafts_mostly_are_accepted() -> None:
    rates = RequestRates()
    for _ in range(20):
        rates.observe("good", 4, 0)
        rates.observe("even", 1, 1)
    for drafter in ("good", "even"):
        rates.observe(drafter, 0, 1)
    assert rates.is_doubtful("good")
    assert not rates.is_doubtful("even")
    assert not rates.is_doubtful("unknown")
    rates.observe("good", 1, 0)
    assert not rates.is_doubtful("good")


def test_missed_drafts_ahead_raise_doubts_and_leave_the_rate() -> None:
    rates, record = RequestRates(), DrafterRecord()
    rates.observe("a", 8, 4)
    rate = rates.estimate("a", record)
    for _ in range(2):
        rates.note_missed("a")
        rates.note_missed("unknown")
    assert rates.is_doubtful("a")
    assert not rates.is_doubtful("unknown")
    assert rates.estimate("a", record) == rate
    rates.observe("a", 1, 0)
    assert not rates.is_doubtful("a")
