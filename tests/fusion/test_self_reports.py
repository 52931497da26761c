"""Self-reports count as far as verification results confirm them."""

from __future__ import annotations

from edgecosine.fusion.acceptance_rates import DrafterRecord, RequestRates, SelfReport


def test_over_reported_acceptance_is_discounted() -> None:
    honest, over_confident = DrafterRecord(), DrafterRecord()
    for _ in range(20):
        honest.self_report.observe(0.9, 9, 1)
        over_confident.self_report.observe(0.9, 1, 9)
    assert honest.self_report.trust > 0.95
    assert over_confident.self_report.trust < 0.25
    rates = RequestRates()
    rates.observe_report("d", 40, 0)
    assert rates.estimate("d", honest) > 0.85
    assert rates.estimate("d", over_confident) < 0.35


def test_under_reporting_does_not_raise_trust_above_one() -> None:
    report = SelfReport()
    for _ in range(20):
        report.observe(0.1, 9, 1)
    assert report.trust == 1.0
