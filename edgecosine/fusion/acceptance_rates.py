"""Which drafter is good for which request, learned online from what the target accepts.

Every draft that arrives is judged against the target's own tokens, whether or not its nodes were in
the tree, so a round teaches about every drafter that was asked. A drafter that reads tokens which
it has not drafted says what it would have guessed there: of the prompt before the first round, of
the answer when it is tried later. Verdicts then weigh more and more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgecosine.fusion.text_similarity import Expectation

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
TOLD_MEMORY = 48.0
"""Tokens after which what a drafter told of an answer has faded to 1/e."""
TOLD_WEIGHT = 24.0
"""Tokens that its telling counts for, at most; verdicts may outweigh it."""
SURPRISE_WEIGHT = 12.0
"""Tokens that the surprise at the prompt counts for in a new request."""
SURPRISE_SCALE = 2.1
"""Nats more than the least surprised drafter by which acceptance falls to 1/e of its (measured on
the zoo: within 15% of 2.1 from a quarter of a nat to nine)."""
FIRST_LEAD = 0.75
"""Acceptance rate that the least surprised drafter is expected to reach, before any did."""
LEAD_WEIGHT = 12.0
LEAD_MEMORY = 200.0
WORD_MEMORY = 200.0
WORD_PRIOR = 6.0
"""Tokens that a drafter's word is believed for in advance."""
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
class SelfReport:
    """What a drafter tells of itself, against verdicts: nobody is chosen for long by boasting."""

    claimed: float = 0.0
    kept: float = 0.0

    def observe(self, claim: float, hits: int, misses: int) -> None:
        """Its drafts were judged where it had told an acceptance rate of `claim`."""
        fade = max(0.0, 1.0 - (hits + misses) / WORD_MEMORY)
        self.claimed = self.claimed * fade + claim * (hits + misses)
        self.kept = self.kept * fade + hits

    @property
    def trust(self) -> float:
        """Share of what it claims that can be expected, at most 1."""
        return min(1.0, (self.kept + WORD_PRIOR) / (self.claimed + WORD_PRIOR))

    @property
    def is_good(self) -> bool:
        """Whether what it says of a prompt counts, for itself and in comparison with others."""
        return self.trust >= 0.5


@dataclass(slots=True)
class DrafterRecord:
    """What all requests taught about one drafter."""

    rate: AcceptanceRate = field(default_factory=lambda: AcceptanceRate(RECORD_MEMORY))
    word: SelfReport = field(default_factory=SelfReport)

    @property
    def prior(self) -> float:
        """Expected acceptance rate for a request of which nothing is known."""
        return self.rate.mean(FIRST_GUESS, 4.0)


@dataclass(slots=True)
class ConditionalAcceptance:
    """How often a drafter was right where another had just gone wrong, by the pair of them: what
    one adds to the other's drafts."""

    rates: dict[tuple[str, str], AcceptanceRate] = field(default_factory=dict)

    def observe(self, drafter: str, rescuer: str, *, is_rescued: bool) -> None:
        """Learn from one draft that went wrong, and what the other said there."""
        rate = self.rates.setdefault((drafter, rescuer), AcceptanceRate(RESCUE_MEMORY))
        rate.observe(int(is_rescued), int(not is_rescued))

    def forget(self, drafter: str) -> None:
        """Nothing is known of a drafter any more."""
        for pair in [pair for pair in self.rates if drafter in pair]:
            del self.rates[pair]

    def estimate(self, drafter: str, rescuer: str) -> float:
        """Probability that `rescuer` is right where `drafter` is wrong."""
        rate = self.rates.get((drafter, rescuer))
        return rate.mean(FIRST_RESCUE, 4.0) if rate else FIRST_RESCUE


@dataclass(slots=True)
class PromptScoreGain:
    """What the least surprised drafters reached: surprises compare drafters, but where all of them
    are bad the best one is bad, too."""

    rate: AcceptanceRate = field(default_factory=lambda: AcceptanceRate(LEAD_MEMORY))

    @property
    def expected(self) -> float:
        """Acceptance rate to expect of the least surprised one."""
        return self.rate.mean(FIRST_LEAD, LEAD_WEIGHT)


def foresee(surprises: Mapping[str, float], lead: float) -> dict[str, float]:
    """Acceptance rates to expect of drafters that have read the same text with these surprises, in
    nats per token; `lead` is that of the least surprised one."""
    least = min(surprises.values(), default=0.0)
    return {
        drafter: lead * math.exp((least - surprise) / SURPRISE_SCALE)
        for drafter, surprise in surprises.items()
    }


@dataclass(slots=True)
class RequestRates:
    """What is known of each drafter within one request, by node id.

    Verdicts on its drafts (`rates`) come first, then what it told of the answer's tokens when it
    read them (`told`), then what its surprise at the prompt lets `foresee`, or, of a drafter that
    has not read it, what is `expected` on a text of this kind; at last its record.
    """

    rates: dict[str, AcceptanceRate] = field(default_factory=dict)
    told: dict[str, AcceptanceRate] = field(default_factory=dict)
    foreseen: Mapping[str, float] = field(default_factory=dict)
    foreseen_weight: float = SURPRISE_WEIGHT
    expected: Mapping[str, Expectation] = field(default_factory=dict)

    def observe(self, drafter: str, hits: int, misses: int) -> None:
        """Learn from one judged draft."""
        rate = self.rates.setdefault(drafter, AcceptanceRate(REQUEST_MEMORY))
        rate.observe_change(hits, misses)

    def hear(self, drafter: str, hits: int, misses: int) -> None:
        """Learn from what a drafter says of tokens of the answer that it has read."""
        self.told.setdefault(drafter, AcceptanceRate(TOLD_MEMORY)).observe(hits, misses)

    def claim(self, drafter: str) -> float | None:
        """The acceptance rate that a drafter's own words amount to; None if it said nothing."""
        told = self.told.get(drafter)
        if told and told.evidence >= 1.0:
            return told.hits / told.evidence
        return self.foreseen.get(drafter)

    def estimate(self, drafter: str, record: DrafterRecord) -> float:
        """Expected acceptance rate of a drafter for this request."""
        prior, weight = record.prior, PRIOR_WEIGHT
        if drafter in self.foreseen:
            weight += self.foreseen_weight
            prior += (self.foreseen[drafter] - prior) * self.foreseen_weight / weight
        elif expectation := self.expected.get(drafter):
            known = self._known(drafter)
            prior = known * expectation.rate + (1 - known) * prior
            weight += known * CONTEXT_WEIGHT
        if told := self.told.get(drafter):
            heard = min(TOLD_WEIGHT, told.evidence)
            weight += heard
            claim = told.hits / told.evidence if told.evidence else prior
            prior += (record.word.trust * claim - prior) * heard / weight
        rate = self.rates.get(drafter)
        return rate.mean(prior, weight) if rate else prior

    def evidence(self, drafter: str) -> float:
        """Tokens of this drafter that were judged in this request or told by it, and what its
        surprise or texts of this kind count for."""
        known = (seen.get(drafter) for seen in (self.rates, self.told))
        evidence = sum(rate.evidence for rate in known if rate)
        if drafter in self.foreseen:
            return evidence + self.foreseen_weight
        return evidence + self._known(drafter) * CONTEXT_WEIGHT

    def _known(self, drafter: str) -> float:
        """How much experience with texts of this kind is believed, 0 to 1."""
        expectation = self.expected.get(drafter)
        return expectation.weight / (expectation.weight + DOUBT) if expectation else 0.0
