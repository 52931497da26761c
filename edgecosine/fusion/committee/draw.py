"""The token that a committee draws at one node, and the proof that no other token wins.

The committee's logits are log P (`bounds.py`). Penalties, bias, temperature, cuts and noise follow
as for one model (`engine/sampling.py`), so temperature acts on the mixture. As in the threshold
algorithm (Fagin et al., 2001), a token whose lower bound exceeds all other upper bounds is the
winner of the whole mixture. Otherwise more values are needed; whole rows always suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgecosine.fusion.committee.ballot import Ballot
from edgecosine.fusion.committee.bounds import SLACK, Bounds, bounds_of
from edgecosine.fusion.committee.cuts import kept
from edgecosine.fusion.committee.draw_rule import DrawRule
from edgecosine.protocol.api.request import Logprobs


@dataclass(frozen=True, slots=True)
class Drawn:
    """The token, and its log-probabilities if the rule asks for them."""

    token: int
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True)
class Unproven:
    """The bounds prove no token. `ids` are tokens whose logits are needed from the members that
    did not list them; without any, longer lists are needed."""

    ids: tuple[int, ...] = ()


def decide(
    weights: Sequence[float], ballots: Sequence[Ballot], rule: DrawRule, vocabulary: int
) -> Drawn | Unproven:
    """The draw from the ballots of members with these weights, in the order of the configuration.

    Raises ValueError for a weight that is not above 0.
    """
    if not all(weight > 0.0 for weight in weights):
        raise ValueError("a member's weight is above 0")
    return draw_within(bounds_of(weights, ballots, rule, vocabulary), rule)


def draw_within(bounds: Bounds, rule: DrawRule) -> Drawn | Unproven:
    """The draw from a distribution with these bounds."""
    unknown = ~bounds.is_exact & (bounds.offsets != 0.0) & np.isfinite(bounds.offsets)
    if unknown.any():
        return _needs(bounds, unknown)
    drawn = _draw_cut(bounds, rule) if rule.has_cuts else _draw(bounds, rule)
    if isinstance(drawn, Unproven):
        return drawn
    token = int(bounds.ids[drawn])
    if rule.num_top is None:
        return Drawn(token)
    logprobs = _logprobs(bounds, drawn, rule.num_top)
    return logprobs if isinstance(logprobs, Unproven) else Drawn(token, logprobs)


def _draw(bounds: Bounds, rule: DrawRule) -> int | Unproven:
    """The index of the highest score, of equal ones the lowest id."""
    inverse = 1.0 / (rule.temperature or 1.0)
    lower = (bounds.lower + bounds.offsets) * inverse + bounds.noise
    upper = (bounds.upper + bounds.offsets) * inverse + bounds.noise
    best = int(np.argmax(lower))
    is_rival = ~bounds.is_exact if bounds.is_exact[best] else np.ones(lower.size, dtype=bool)
    is_rival[best] = False
    is_rival &= upper + SLACK >= lower[best]
    if is_rival.any():
        is_rival[best] = True
        return _needs(bounds, is_rival & ~bounds.is_exact)
    if bounds.num_others and not lower[best] > bounds.score_bound + SLACK:
        return Unproven()
    return best


def _draw_cut(bounds: Bounds, rule: DrawRule) -> int | Unproven:
    support = kept(bounds, rule.sampling, has_bans=rule.has_bans)
    if support is None:
        return _needs(bounds, ~bounds.is_exact & (bounds.upper > bounds.log_bound - SLACK))
    support = np.sort(support)
    adjusted = bounds.lower[support] + bounds.offsets[support]
    scores = adjusted / rule.temperature + bounds.noise[support]
    return int(support[np.argmax(scores)])


def _logprobs(bounds: Bounds, drawn: int, num_top: int) -> Logprobs | Unproven:
    """The log-probabilities of the drawn token and of the most probable ones."""
    if not bounds.is_exact[drawn]:
        return Unproven((int(bounds.ids[drawn]),))
    exact = np.flatnonzero(bounds.is_exact)
    best = exact[np.argsort(-bounds.lower[exact], kind="stable")][:num_top]
    least = float(bounds.lower[best[-1]]) if best.size == num_top > 0 else -np.inf
    is_rival = ~bounds.is_exact & (bounds.upper + SLACK >= least)
    if num_top and not bounds.is_whole:
        if is_rival.any():
            return _needs(bounds, is_rival)
        if bounds.num_others and not least > bounds.log_bound + SLACK:
            return Unproven()
    top = zip(bounds.ids[best].tolist(), bounds.lower[best].tolist(), strict=True)
    return Logprobs(float(bounds.lower[drawn]), tuple(top))


def _needs(bounds: Bounds, which: npt.NDArray[np.bool_]) -> Unproven:
    return Unproven(tuple(bounds.ids[which].tolist()))
