"""Acceptance rates of drafters, learned online from the tokens that the target commits.

Every draft that arrives is compared with the committed tokens, whether or not its nodes were in the
verified tree, so each round yields evidence about every drafter that was asked. A drafter that
reads tokens which it did not draft reports which of them it would have drafted: of the prompt
before the first round, of the answer when it is probed later. Verification results then weigh more
and more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

PRIOR_WEIGHT = 2.0
"""Tokens that a drafter's record over all requests counts for in a new request."""
REQUEST_MEMORY = 60.0
"""Judged tokens after which evidence within a request has faded to 1/e: subjects change."""
DOUBT_PROBABILITY, CHANGE_PROBABILITY = 0.2, 1e-3
"""A run of rejected drafts that is less likely than the first raises doubts in a drafter, less than
the second is taken for a change of the subject or of the drafter."""
RECORD_MEMORY = 600.0
FIRST_RATE = 0.5
REPORT_MEMORY = 48.0
"""Tokens after which a drafter's reports about an answer have faded to 1/e."""
MAX_REPORT_WEIGHT = 24.0
"""Tokens that its reports count for, at most; verification results may outweigh them."""
NLL_WEIGHT = 12.0
"""Tokens that the NLL of the prompt counts for in a new request."""
NLL_SCALE = 2.1
"""Nats above the lowest NLL by which acceptance falls to 1/e of the best drafter's (measured on the
zoo: within 15% of 2.1 from a quarter of a nat to nine)."""
FIRST_BEST_RATE = 0.75
"""Acceptance rate expected of the drafter with the lowest NLL, before any measurement."""
BEST_RATE_WEIGHT = 12.0
BEST_RATE_MEMORY = 200.0
TRUST_MEMORY = 200.0
TRUST_PRIOR = 6.0
"""Tokens for which a drafter's self-reports are trusted in advance."""


@dataclass(slots=True)
class AcceptanceRate:
    """Share of draft tokens that are accepted given that their parent is, with fading memory."""

    memory: float
    hits: float = 0.0
    misses: float = 0.0
    run_probability: float = 1.0
    """Probability of the misses in a row since the last hit, each by the evidence before it."""

    def observe(self, hits: int, misses: int) -> None:
        """Add evidence."""
        fade = max(0.0, 1.0 - (hits + misses) / self.memory)
        self.hits = self.hits * fade + hits
        self.misses = self.misses * fade + misses

    def observe_change(self, hits: int, misses: int) -> None:
        """Add evidence of a rate that may have changed: an improbable run of misses halves the hits
        before it, and each further miss does so again."""
        if hits:
            self.run_probability = 1.0
        elif misses:
            self.run_probability *= self.mean_miss
            if self.run_probability < CHANGE_PROBABILITY:
                self.hits *= 0.5
        self.observe(hits, misses)

    @property
    def mean_miss(self) -> float:
        """Share of misses; one hit and one miss are the prior."""
        return (self.misses + 1.0) / (self.hits + self.misses + 2.0)

    def mean(self, prior: float, weight: float) -> float:
        """Posterior mean with a prior worth `weight` tokens."""
        total = self.hits + self.misses + weight
        return (self.hits + prior * weight) / total

    @property
    def evidence(self) -> float:
        """Tokens judged, faded ones in part."""
        return self.hits + self.misses


def lower_bound(rate: float, evidence: float) -> float:
    """A rate less one standard deviation of its Beta posterior, which rests on `evidence` tokens
    and the prior."""
    deviation = math.sqrt(rate * (1.0 - rate) / (evidence + PRIOR_WEIGHT + 1.0))
    return max(0.0, rate - deviation)


@dataclass(slots=True)
class SelfReport:
    """A drafter's self-reported acceptance against the measured one, so that over-reporting does
    not pay for long."""

    reported: float = 0.0
    accepted: float = 0.0

    def observe(self, reported_rate: float, hits: int, misses: int) -> None:
        """Learn from judged drafts for which the drafter had reported an acceptance rate."""
        fade = max(0.0, 1.0 - (hits + misses) / TRUST_MEMORY)
        self.reported = self.reported * fade + reported_rate * (hits + misses)
        self.accepted = self.accepted * fade + hits

    @property
    def trust(self) -> float:
        """Measured over reported acceptance, at most 1."""
        return min(1.0, (self.accepted + TRUST_PRIOR) / (self.reported + TRUST_PRIOR))

    @property
    def is_trusted(self) -> bool:
        """Whether the drafter's NLL of a prompt is compared with those of others."""
        return self.trust >= 0.5


@dataclass(slots=True)
class DrafterRecord:
    """Evidence about one drafter over all requests."""

    rate: AcceptanceRate = field(default_factory=lambda: AcceptanceRate(RECORD_MEMORY))
    self_report: SelfReport = field(default_factory=SelfReport)

    @property
    def prior(self) -> float:
        """Expected acceptance rate for a request without evidence of its own."""
        return self.rate.mean(FIRST_RATE, 4.0)


@dataclass(slots=True)
class PromptScoreGain:
    """Acceptance rate of the drafters with the lowest NLL. NLLs only compare drafters: where all
    are bad, the best one is bad, too."""

    rate: AcceptanceRate = field(default_factory=lambda: AcceptanceRate(BEST_RATE_MEMORY))

    @property
    def expected(self) -> float:
        """Acceptance rate to expect of the drafter with the lowest NLL."""
        return self.rate.mean(FIRST_BEST_RATE, BEST_RATE_WEIGHT)


def predicted_rates(nlls: Mapping[str, float], best_rate: float) -> dict[str, float]:
    """Acceptance rates of drafters by the NLL of one text, in nats per token; `best_rate` is that
    of the drafter with the lowest NLL."""
    least = min(nlls.values(), default=0.0)
    return {
        drafter: best_rate * math.exp((least - nll) / NLL_SCALE) for drafter, nll in nlls.items()
    }


@dataclass(slots=True)
class RequestRates:
    """Evidence about each drafter within one request, by node id.

    Verification results (`rates`) come first, then self-reports about the answer (`reported`), then
    the prediction from the prompt's NLL (`predicted`); last comes its record.
    """

    rates: dict[str, AcceptanceRate] = field(default_factory=dict)
    reported: dict[str, AcceptanceRate] = field(default_factory=dict)
    predicted: Mapping[str, float] = field(default_factory=dict)
    predicted_weight: float = NLL_WEIGHT

    def observe(self, drafter: str, hits: int, misses: int) -> None:
        """Learn from one judged draft."""
        rate = self.rates.setdefault(drafter, AcceptanceRate(REQUEST_MEMORY))
        rate.observe_change(hits, misses)

    def note_missed(self, drafter: str) -> None:
        """A drafter's draft ahead has no node behind the committed tokens: that raises doubts, but
        says nothing of the rate at which tokens behind accepted ones are accepted."""
        if judged := self.rates.get(drafter):
            judged.run_probability *= judged.mean_miss

    def is_doubtful(self, drafter: str) -> bool:
        """Whether the latest drafts were rejected of a drafter whose drafts mostly are not."""
        judged = self.rates.get(drafter)
        return judged is not None and judged.run_probability < DOUBT_PROBABILITY

    def observe_report(self, drafter: str, hits: int, misses: int) -> None:
        """Learn from a drafter's report about tokens of the answer that it has read."""
        self.reported.setdefault(drafter, AcceptanceRate(REPORT_MEMORY)).observe(hits, misses)

    def reported_rate(self, drafter: str) -> float | None:
        """The acceptance rate that a drafter's reports amount to; None without a report."""
        reported = self.reported.get(drafter)
        if reported and reported.evidence >= 1.0:
            return reported.hits / reported.evidence
        return self.predicted.get(drafter)

    def estimate(self, drafter: str, record: DrafterRecord) -> float:
        """Expected acceptance rate of a drafter for this request."""
        prior, weight = record.prior, PRIOR_WEIGHT
        if drafter in self.predicted:
            weight += self.predicted_weight
            prior += (self.predicted[drafter] - prior) * self.predicted_weight / weight
        if reported := self.reported.get(drafter):
            report_weight = min(MAX_REPORT_WEIGHT, reported.evidence)
            weight += report_weight
            rate = reported.hits / reported.evidence if reported.evidence else prior
            prior += (record.self_report.trust * rate - prior) * report_weight / weight
        judged = self.rates.get(drafter)
        return judged.mean(prior, weight) if judged else prior

    def evidence(self, drafter: str) -> float:
        """Tokens of this drafter that were judged or reported in this request, and those that its
        NLL counts for."""
        predicted = self.predicted_weight if drafter in self.predicted else 0.0
        return self.judged(drafter) + predicted

    def judged(self, drafter: str) -> float:
        """The evidence without the prediction by the NLL, which only compares drafters."""
        known = (self.rates, self.reported)
        return sum([rates[drafter].evidence for rates in known if drafter in rates])
