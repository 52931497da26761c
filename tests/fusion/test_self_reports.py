"""What drafters say of themselves counts as far as verdicts bore it out."""

from __future__ import annotations

from edgecosine.fusion.acceptance_rates import DrafterRecord, RequestRates, SelfReport


def test_over_reported_acceptance_is_discounted() -> None:
    honest, boaster = DrafterRecord(), DrafterRecord()
    for _ in range(20):
        honest.self_report.observe(0.9, 9, 1)
        boaster.self_report.observe(0.9, 1, 9)
    assert honest.self_report.trust > 0.95
    assert boaster.self_report.trust < 0.25
    rates = RequestRates()
    rates.observe_report("d", 40, 0)
    assert rates.estimate("d", honest) > 0.85
    assert rates.estimate("d", boaster) < 0.35


def test_under_reporting_does_not_raise_trust_above_one() -> None:
    word = SelfReport()
    for _ in range(20):
        word.observe(0.1, 9, 1)
    assert word.trust == 1.0
