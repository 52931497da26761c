"""Rules that choose one drafter for each round, for comparison with EdgeCoSine's routing: pure
functions of recorded texts.

In a round the chosen drafter drafts a chain of `GAMMA` tokens. Those before its first wrong one are
accepted, and the target adds one. A rule observes what its published form observes, at no cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgecosine.lab.simulation.texts import Texts

GAMMA = 6
Lengths = npt.NDArray[np.int64]
"""[drafters, texts, positions]: accepted tokens of a chain from each position on."""
Led = dict[str, dict[str, dict[str, int]]]
"""Rounds `led` and `first` rounds, by drafter and domain, as in the record of a run."""


class Rule(Protocol):
    """Chooses drafters; one object serves all requests of a run, in their order."""

    def open(self, prompt_scores: Sequence[float]) -> None:
        """A request begins; `prompt_scores` are the drafters' mean negative log-likelihoods of its
        prompt, in nats per token."""

    def choose(self) -> int:
        """The drafter of the next round."""

    def observe(self, chosen: int, accepted: Sequence[float]) -> None:
        """A round ends; `accepted` has for each drafter the share of `GAMMA` tokens that it would
        have had accepted. A bandit may only read that of `chosen`."""


class PromptScoreRule:
    """Chooses the drafter with the lowest prompt score, for the whole request."""

    def open(self, prompt_scores: Sequence[float]) -> None:
        """As in `Rule`."""
        self._best = min(range(len(prompt_scores)), key=prompt_scores.__getitem__)

    def choose(self) -> int:
        """As in `Rule`."""
        return self._best

    def observe(self, chosen: int, accepted: Sequence[float]) -> None:
        """As in `Rule`; this rule learns nothing."""


class Hedge:
    """Weights over drafters by full information: each round multiplies the weight of every drafter
    by exp(rate * accepted share), and the heaviest one leads. Weights are uniform at the start of a
    request, and among equals the drafter that was best so far leads.

    Not-a-Bandit (arXiv 2510.20064), where every drafter is scored on the committed text.
    """

    def __init__(self, num_drafters: int, rate: float) -> None:
        self._rate = rate
        self._total = [0.0] * num_drafters
        self._logs = [0.0] * num_drafters

    def open(self, prompt_scores: Sequence[float]) -> None:
        """As in `Rule`."""
        self._logs = [0.0] * len(prompt_scores)

    def choose(self) -> int:
        """As in `Rule`."""
        return max(range(len(self._logs)), key=lambda d: (self._logs[d], self._total[d]))

    def observe(self, chosen: int, accepted: Sequence[float]) -> None:
        """As in `Rule`."""
        for drafter, share in enumerate(accepted):
            self._logs[drafter] += self._rate * share
            self._total[drafter] += share


class Bandit:
    """UCB1 within each request: the highest mean accepted share plus sqrt(rate ln n / n_d); a
    drafter without a round in the request goes first, in the order of the means over all requests.

    Auer, Cesa-Bianchi and Fischer (2002); as in BanditSpec (arXiv 2505.15141).
    """

    def __init__(self, num_drafters: int, rate: float) -> None:
        self._rate = rate
        self._ever = [(0, 0.0)] * num_drafters
        self._here = [(0, 0.0)] * num_drafters

    def open(self, prompt_scores: Sequence[float]) -> None:
        """As in `Rule`."""
        self._here = [(0, 0.0)] * len(prompt_scores)

    def choose(self) -> int:
        """As in `Rule`."""
        return max(range(len(self._here)), key=self._bound)

    def _bound(self, drafter: int) -> tuple[float, float]:
        ever = self._ever[drafter][1] / max(1, self._ever[drafter][0])
        count, total = self._here[drafter]
        if not count:
            return math.inf, ever
        num_rounds = sum(n for n, _ in self._here)
        return total / count + math.sqrt(self._rate * math.log(num_rounds) / count), ever

    def observe(self, chosen: int, accepted: Sequence[float]) -> None:
        """As in `Rule`."""
        for known in (self._here, self._ever):
            count, total = known[chosen]
            known[chosen] = count + 1, total + accepted[chosen]


def accepted_lengths(texts: Texts, num_tokens: int) -> Lengths:
    """Accepted tokens of every drafter's chain from every position of each answer's first
    `num_tokens`; at least `GAMMA` more tokens must be recorded."""
    is_right = texts.guesses[..., 0] == texts.answers[None]
    lengths = np.zeros((*is_right.shape[:2], num_tokens), np.int64)
    alive = np.ones_like(lengths, dtype=bool)
    for step in range(GAMMA):
        alive &= is_right[:, :, step : step + num_tokens]
        lengths += alive
    return lengths


def worth(texts: Texts, lengths: Lengths, numbers: Sequence[int]) -> dict[str, dict[str, float]]:
    """Mean accepted tokens of a round if each drafter worked alone, by drafter and domain, over the
    texts of these numbers."""
    found: dict[str, dict[str, float]] = {}
    for which, name in enumerate(texts.drafters):
        rounds: dict[str, list[int]] = {}
        for number in numbers:
            walked = _rounds(lengths[:, number], partial(int, which))
            rounds.setdefault(texts.domains[number], []).extend(a[which] for _, a in walked)
        found[name] = {domain: sum(each) / len(each) for domain, each in rounds.items()}
    return found


def leaders(rule: Rule, texts: Texts, lengths: Lengths, numbers: Sequence[int]) -> Led:
    """The rounds that each drafter leads under a rule, over the texts of these numbers."""
    led: Led = {name: {} for name in texts.drafters}
    for number in numbers:
        rule.open(texts.prompt_scores[:, number].tolist())
        for place, (chosen, accepted) in enumerate(_rounds(lengths[:, number], rule.choose)):
            rule.observe(chosen, [length / GAMMA for length in accepted])
            count_led(led, texts.drafters[chosen], texts.domains[number], 1, int(not place))
    return led


def count_led(led: Led, drafter: str, domain: str, rounds: int, first: int) -> None:
    """Add rounds that a drafter led, and how many of them were the first of their request."""
    row = led.setdefault(drafter, {}).setdefault(domain, {"led": 0, "first": 0})
    row["led"] += rounds
    row["first"] += first


def _rounds(lengths: Lengths, choose: Callable[[], int]) -> Iterator[tuple[int, list[int]]]:
    """The rounds of one text: the chosen drafter, and the accepted tokens of every drafter's chain.
    `lengths` are [drafters, positions]."""
    place = 0
    while place < lengths.shape[1]:
        chosen, accepted = choose(), lengths[:, place].tolist()
        yield chosen, accepted
        place += accepted[chosen] + 1
