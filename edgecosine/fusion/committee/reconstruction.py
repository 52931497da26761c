"""SpecFed's two reconstructions of what members do not upload (arXiv 2604.25777), and their errors.

Member i uploads the probabilities of its K most probable tokens, of mass rho_i; eps_i = 1 - rho_i
is lost. The bounds, with Delta = ||P^ - P||_1 of the mixture:

  renormalise   p / rho on the K tokens, 0 elsewhere       ||p^_i - p_i||_1  = 2 eps_i
  uniform       p on the K tokens, eps / (V - K) elsewhere ||p^_i - p_i||_1 <= 2 eps_i
  both          Delta <= 2 sum of w_i eps_i
  rejection     acceptance changes by at most Delta / 2 <= sum of w_i eps_i  (the paper's eq. 19
                lacks the factor 1/2: p = (.9, .1) and K = 1 give Delta = .2 and eps = .1)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgecosine.fusion.committee.ballot import Ballot, Floats
from edgecosine.fusion.committee.bounds import mixed
from edgecosine.fusion.committee.draw_rule import Reconstruction


def reconstructed(ballot: Ballot, how: Reconstruction, vocabulary: int) -> tuple[Floats, float]:
    """A member's log p^ [vocabulary] and its lost mass eps."""
    listed = ballot.logits - ballot.lse
    mass = float(np.exp(listed).sum())
    lost = max(0.0, 1.0 - mass)
    logprobs = np.full(vocabulary, -np.inf)
    if how == "renormalise":
        listed = listed - np.log(mass)
    elif vocabulary > ballot.ids.size and lost > 0.0:
        logprobs[:] = np.log(lost / (vocabulary - ballot.ids.size))
    logprobs[ballot.ids] = listed
    return logprobs, lost


def mixture(
    weights: Sequence[float], ballots: Sequence[Ballot], how: Reconstruction, vocabulary: int
) -> tuple[Floats, float]:
    """log P^ [vocabulary] of the committee, and sum of w_i eps_i."""
    members = [reconstructed(ballot, how, vocabulary) for ballot in ballots]
    lost = sum(weight * eps for weight, (_, eps) in zip(weights, members, strict=True))
    return mixed(weights, np.array([logprobs for logprobs, _ in members])), lost


def most_different(lost: float) -> float:
    """The most probability that a draw with the same noise differs from the exact one: with
    delta = Delta / 2 <= `lost`, Pr(equal) >= (1 - delta) / (1 + delta)."""
    return 2.0 * lost / (1.0 + lost)
