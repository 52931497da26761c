"""The facts that a committee has of one member's row of logits at one node of a token tree.

A ballot lists the logits of some tokens and bounds those of all others, in two ways: by score after
noise, s(x) = (z(x) - lse) / T + g(x), and by logit z(x). lse is the log-sum-exp of the row, so that
p(x) = exp(z(x) - lse).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SCORE_SLACK = 1e-4
"""Added to a member's score bound: its device may compute the noise with other rounding."""
MASS_SLACK = 1e-3
"""Amount by which the listed probabilities may exceed 1, since lse is rounded to float32."""


@dataclass(frozen=True, slots=True)
class Ballot:
    """One member's ballot.

    ids          listed tokens, ascending, each once
    logits       their logits
    score_bound  no other token has a higher s(x); infinite if unknown
    logit_bound  no other token has a higher z(x); infinite if unknown
    """

    lse: float
    ids: Ids
    logits: Floats
    score_bound: float = math.inf
    logit_bound: float = math.inf

    @classmethod
    def of(
        cls,
        lse: float,
        ids: Ids,
        logits: Floats,
        *,
        vocabulary: int,
        score_bound: float = math.inf,
        logit_bound: float = math.inf,
    ) -> Self:
        """The ballot of lists in any order, which may name a token twice.

        Raises ValueError where the values cannot be a row's: a member could otherwise have more
        than its weight.
        """
        unique, first = np.unique(ids, return_index=True)
        values = logits[first]
        if not math.isfinite(lse) or np.isnan(values).any():
            raise ValueError("a row with NaN, or without a finite log-sum-exp")
        if math.isnan(score_bound) or math.isnan(logit_bound):
            raise ValueError("a bound that is NaN")
        if unique.size and not 0 <= unique[0] <= unique[-1] < vocabulary:
            raise ValueError(f"a token that is not one of {vocabulary}")
        with np.errstate(over="ignore"):
            mass = float(np.exp(values - lse).sum())
        if not mass <= 1.0 + MASS_SLACK:
            raise ValueError(f"probabilities with a sum of {mass:g}")
        return cls(lse, unique, values, score_bound, logit_bound)

    @classmethod
    def dense(cls, lse: float, logits: Floats) -> Self:
        """The ballot of a whole row.

        Raises ValueError as `of` does.
        """
        size = logits.size
        ids = np.arange(size, dtype=np.int64)
        lowest = -math.inf
        return cls.of(lse, ids, logits, vocabulary=size, score_bound=lowest, logit_bound=lowest)

    def extended(self, other: Ballot, *, vocabulary: int) -> Ballot:
        """This ballot with the lists of a later one about the same row, and the lower bounds.

        Raises ValueError as `of` does.
        """
        return Ballot.of(
            self.lse,
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.logits, other.logits]),
            vocabulary=vocabulary,
            score_bound=min(self.score_bound, other.score_bound),
            logit_bound=min(self.logit_bound, other.logit_bound),
        )

    def with_logits(self, ids: Collection[int], logits: Floats, *, vocabulary: int) -> Ballot:
        """This ballot with the logits of more tokens.

        Raises ValueError as `of` does.
        """
        more = replace(self, ids=np.array([*ids], dtype=np.int64), logits=logits)
        return self.extended(more, vocabulary=vocabulary)

    def logprobs(self, tokens: Ids, noise: Floats, temperature: float) -> tuple[Floats, Floats]:
        """Lower and upper bounds of log p of `tokens`; equal for listed ones.

        `noise` is that of the tokens; temperature 0: greedy, and no score bound.
        """
        lower = np.full(tokens.size, -np.inf)
        upper = np.full(tokens.size, self.log_bound)
        if temperature > 0.0 and self.score_bound < math.inf:
            by_score = temperature * (self.score_bound + SCORE_SLACK - noise)
            upper = np.minimum(upper, by_score)
        if self.ids.size:
            at = np.minimum(np.searchsorted(self.ids, tokens), self.ids.size - 1)
            is_listed = self.ids[at] == tokens
            lower[is_listed] = upper[is_listed] = self.logits[at[is_listed]] - self.lse
        return lower, upper

    @property
    def log_bound(self) -> float:
        """No unlisted token has a higher log p."""
        return min(0.0, self.logit_bound - self.lse)
