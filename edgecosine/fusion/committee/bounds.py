"""Bounds of a committee's distribution, from lists that its members sent.

The distribution is P(x) = sum of w_i p_i(x) over the members (SpecFed, arXiv 2604.25777). A token
that member i did not list has a bounded probability there:

  p_i(x) <= exp(T (theta_i - g(x)))   by its bound of scores after noise, theta_i
  p_i(x) <= exp(t_i - lse_i)          by its bound of logits, t_i

so a token that no member listed has a score log P(x) / T + g(x) of at most
log(sum of w_i exp(T theta_i)) / T, a constant: the noise cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgecosine.fusion.committee.ballot import SCORE_SLACK, Ballot, Floats, Ids
from edgecosine.fusion.committee.draw_rule import DrawRule

SLACK = 1e-5
"""A value counts as beyond a bound from this distance on: both are rounded."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of log P for the tokens that a member listed or the rule offsets, and for all others.

    ids          ascending
    lower, upper of log P
    is_exact     whether every member listed the token; then lower equals upper
    offsets      added to log P before the draw; infinite offsets are bans
    noise        the Gumbel noise of the tokens; 0 for greedy draws
    log_bound    no other token has a higher log P
    score_bound  no other token has a higher log P / T + g; for greedy draws as `log_bound`
    num_others   number of other tokens
    """

    ids: Ids
    lower: Floats
    upper: Floats
    is_exact: npt.NDArray[np.bool_]
    offsets: Floats
    noise: Floats
    log_bound: float
    score_bound: float
    num_others: int

    @property
    def is_whole(self) -> bool:
        """Whether P is known for the whole vocabulary."""
        return not self.num_others and bool(self.is_exact.all())

    @property
    def rest_bound(self) -> float:
        """No token that is not exact has a higher log P."""
        return float(max(self.log_bound, self.upper[~self.is_exact].max(initial=-np.inf)))


def bounds_of(
    weights: Sequence[float], ballots: Sequence[Ballot], rule: DrawRule, vocabulary: int
) -> Bounds:
    """The bounds that follow from the ballots of members with these weights, all above 0."""
    required = np.array([*rule.offsets], dtype=np.int64)
    ids = np.unique(np.concatenate([required, *(ballot.ids for ballot in ballots)]))
    noise, temperature = rule.noise(ids), rule.temperature
    pairs = [ballot.logprobs(ids, noise, temperature) for ballot in ballots]
    num_others = vocabulary - ids.size
    log_bound = score_bound = -math.inf
    if num_others:
        log_bound = score_bound = _mixed_value(weights, [each.log_bound for each in ballots])
        if temperature > 0.0:
            scores = [temperature * (each.score_bound + SCORE_SLACK) for each in ballots]
            score_bound = _mixed_value(weights, scores) / temperature
    return Bounds(
        ids=ids,
        lower=mixed(weights, np.array([lower for lower, _ in pairs])),
        upper=mixed(weights, np.array([upper for _, upper in pairs])),
        is_exact=np.all([lower == upper for lower, upper in pairs], axis=0),
        offsets=_offsets(ids, rule),
        noise=noise,
        log_bound=log_bound,
        score_bound=score_bound,
        num_others=num_others,
    )


def known_bounds(logprobs: Floats, rule: DrawRule) -> Bounds:
    """The bounds of a distribution whose log P [vocabulary] is known."""
    ids = np.arange(logprobs.size, dtype=np.int64)
    is_exact = np.ones(ids.size, dtype=bool)
    offsets, noise = _offsets(ids, rule), rule.noise(ids)
    return Bounds(ids, logprobs, logprobs, is_exact, offsets, noise, -math.inf, -math.inf, 0)


def mixed(weights: Sequence[float], logprobs: Floats) -> Floats:
    """log(sum of w_i p_i) of log p_i [members, tokens]; a token's value depends on its column
    alone, to the bit."""
    parts = np.log(np.array(weights))[:, None] + logprobs
    highest = parts.max(axis=0)
    base = np.where(np.isfinite(highest), highest, 0.0)
    total = np.zeros(parts.shape[1])
    with np.errstate(over="ignore", divide="ignore"):
        for part in parts:
            total += np.exp(part - base)
        result: Floats = base + np.log(total)
    return result


def _mixed_value(weights: Sequence[float], logprobs: Sequence[float]) -> float:
    return float(mixed(weights, np.array(logprobs)[:, None])[0])


def _offsets(ids: Ids, rule: DrawRule) -> Floats:
    offsets = np.zeros(ids.size)
    if rule.offsets:
        tokens = np.array([*rule.offsets], dtype=np.int64)
        offsets[np.searchsorted(ids, tokens)] = [*rule.offsets.values()]
    if rule.allowed is not None:
        offsets[~rule.allowed[ids]] = -np.inf
    return offsets
