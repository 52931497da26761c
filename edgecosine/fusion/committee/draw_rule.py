"""How a committee draws the token at one node: a request's sampling parameters at one position."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgecosine.fusion.committee.ballot import Floats, Ids
from edgecosine.fusion.shared_noise import gumbel
from edgecosine.protocol.api.request import Sampling

Reconstruction = Literal["", "renormalise", "uniform"]
"""Empty: the exact rule; otherwise SpecFed's replacement for tokens that a member did not list."""


@dataclass(frozen=True, slots=True)
class DrawRule:
    """`offsets` are added to the log-probabilities of some tokens: penalties, bias, -inf for a
    ban. `num_top` alternatives to the drawn token are reported; None: no log-probabilities.
    `allowed` [vocabulary] are the tokens that can be drawn; None: all."""

    sampling: Sampling
    position: int
    offsets: Mapping[int, float]
    num_top: int | None = None
    allowed: npt.NDArray[np.bool_] | None = None

    @property
    def temperature(self) -> float:
        """0 for greedy draws."""
        return 0.0 if self.sampling.is_greedy else self.sampling.temperature

    @property
    def has_cuts(self) -> bool:
        """Whether top-k, top-p or min-p may remove tokens."""
        how = self.sampling
        return not how.is_greedy and (how.top_k > 0 or how.top_p < 1.0 or how.min_p > 0.0)

    @property
    def needs_scores(self) -> bool:
        """Whether members list their best tokens after noise."""
        return not self.sampling.is_greedy and not self.has_cuts

    @property
    def needs_logits(self) -> bool:
        """Whether members list their most probable tokens."""
        return not self.needs_scores or self.num_top is not None

    @property
    def has_bans(self) -> bool:
        """Whether some tokens cannot be drawn."""
        return self.allowed is not None or -math.inf in self.offsets.values()

    def noise(self, tokens: Ids) -> Floats:
        """The noise of tokens; zeros for greedy draws."""
        if self.sampling.is_greedy:
            return np.zeros(tokens.size)
        return gumbel(self.sampling.seed, self.position, tokens)


def offsets_of(
    sampling: Sampling, answer: Sequence[int], banned: Collection[int]
) -> dict[int, float]:
    """What penalties, bias and bans add to log-probabilities after the tokens of `answer`."""
    offsets: dict[int, float] = {}
    if sampling.presence_penalty or sampling.frequency_penalty:
        for token, count in Counter(answer).items():
            offsets[token] = -sampling.presence_penalty - sampling.frequency_penalty * count
    for token, bias in sampling.logit_bias:
        offsets[token] = offsets.get(token, 0.0) + bias
    return offsets | dict.fromkeys(banned, -math.inf)
