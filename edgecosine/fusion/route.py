"""Which drafter is good for which request, learned online from what the target accepts.

Every draft that arrives is judged against the target's own tokens, whether or not its nodes were in
the tree, so a round teaches about every drafter that was asked. A request starts from what
earlier requests taught about each drafter; its own rounds then weigh more and more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgecosine.fusion.context import Expectation

PRIOR_WEIGHT = 2.0
"""Tokens that a drafter's record over all requests counts for in a new request."""
REQUEST_MEMORY = 60.0
"""Judged tokens after which evidence within a request has faded to 1/e: subjects change."""
SURPRISE = 1e-3
"""Drafts in a row that were wrong at once, less likely than this by what was believed: the subject
or the drafter has changed."""
RECORD_MEMORY = 600.0
FIRST_GUESS = 0.5
CONTEXT_WEIGHT = 8.0
"""Tokens that experience with texts of the same kind counts for in a new request, at most."""
DOUBT = 2.0
"""Texts of no likeness that experience must outweigh before it is half believed."""
RESCUE_MEMORY = 200.0
FIRST_RESCUE = 0.05


@dataclass(slots=True)
class AcceptanceRate:
    """Share of draft tokens that are right given that their parent is, with fading memory."""

    memory: float
    hits: float = 0.0
    misses: float = 0.0
    doubt: float = 1.0
    """Probability of the misses in a row since the last hit, by what was known before each."""

    def observe(self, hits: int, misses: int) -> None:
        """Add evidence."""
        fade = max(0.0, 1.0 - (hits + misses) / self.memory)
        self.hits = self.hits * fade + hits
        self.misses = self.misses * fade + misses

    def observe_change(self, hits: int, misses: int) -> None:
        """Add evidence of something that may have changed: when a row of misses is a surprise, half
        of the hits before it is forgotten, and again with each further one."""
        if hits:
            self.doubt = 1.0
        elif misses:
            self.doubt *= self.mean_miss
            if self.doubt < SURPRISE:
                self.hits *= 0.5
        self.observe(hits, misses)

    @property
    def mean_miss(self) -> float:
        """Share of misses, with one of each before anything is known."""
        return (self.misses + 1.0) / (self.hits + self.misses + 2.0)

    def mean(self, prior: float, weight: float) -> float:
        """Posterior mean with a prior worth `weight` tokens."""
        total = self.hits + self.misses + weight
        return (self.hits + prior * weight) / total

    @property
    def evidence(self) -> float:
        """Tokens judged, faded ones in part."""
        return self.hits + self.misses


@dataclass(slots=True)
class Record:
    """What all requests taught about one drafter."""

    rate: AcceptanceRate = field(default_factory=lambda: AcceptanceRate(RECORD_MEMORY))

    @property
    def prior(self) -> float:
        """Expected acceptance rate for a request of which nothing is known."""
        return self.rate.mean(FIRST_GUESS, 4.0)


@dataclass(slots=True)
class Rescues:
    """How often a drafter was right where another had just gone wrong, by the pair of them: what
    one adds to the other's drafts."""

    rates: dict[tuple[str, str], AcceptanceRate] = field(default_factory=dict)

    def observe(self, drafter: str, rescuer: str, *, is_rescued: bool) -> None:
        """Learn from one draft that went wrong, and what the other said there."""
        rate = self.rates.setdefault((drafter, rescuer), AcceptanceRate(RESCUE_MEMORY))
        rate.observe(int(is_rescued), int(not is_rescued))

    def estimate(self, drafter: str, rescuer: str) -> float:
        """Probability that `rescuer` is right where `drafter` is wrong."""
        rate = self.rates.get((drafter, rescuer))
        return rate.mean(FIRST_RESCUE, 4.0) if rate else FIRST_RESCUE


@dataclass(slots=True)
class RequestRates:
    """What one request's rounds taught about each drafter, by node id, on top of what is expected
    of it on a text of this kind."""

    rates: dict[str, AcceptanceRate] = field(default_factory=dict)
    expected: Mapping[str, Expectation] = field(default_factory=dict)

    def observe(self, drafter: str, hits: int, misses: int) -> None:
        """Learn from one judged draft."""
        rate = self.rates.setdefault(drafter, AcceptanceRate(REQUEST_MEMORY))
        rate.observe_change(hits, misses)

    def estimate(self, drafter: str, record: Record) -> float:
        """Expected acceptance rate of a drafter for this request."""
        prior, weight = record.prior, PRIOR_WEIGHT
        if expectation := self.expected.get(drafter):
            known = self._known(drafter)
            prior = known * expectation.rate + (1 - known) * prior
            weight += known * CONTEXT_WEIGHT
        rate = self.rates.get(drafter)
        return rate.mean(prior, weight) if rate else prior

    def evidence(self, drafter: str) -> float:
        """Tokens of this drafter that were judged in this request, and what texts of its kind count
        for."""
        rate = self.rates.get(drafter)
        return (rate.evidence if rate else 0.0) + self._known(drafter) * CONTEXT_WEIGHT

    def _known(self, drafter: str) -> float:
        """How much experience with texts of this kind is believed, 0 to 1."""
        expectation = self.expected.get(drafter)
        return expectation.weight / (expectation.weight + DOUBT) if expectation else 0.0
