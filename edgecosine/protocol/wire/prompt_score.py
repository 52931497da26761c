"""The score of a drafter's model on tokens that it read: its predictions and their likelihood."""

from __future__ import annotations

from dataclasses import dataclass

MAX_SCORED_TOKENS = 64
"""Largest number of scored tokens."""


@dataclass(frozen=True, slots=True)
class PromptScore:
    """Scores of the newest prefix tokens that a drafter read and did not draft itself.

    top1_matches  for each token, oldest first, whether it was the drafter's most probable one
    nll           mean of -log q(token), in nats
    """

    top1_matches: tuple[bool, ...] = ()
    nll: float = 0.0

    def joined(self, newer: PromptScore) -> PromptScore:
        """The score of these tokens and of those that were read after them."""
        count, more = len(self.top1_matches), len(newer.top1_matches)
        if not count or not more:
            return self if count else newer
        nll = (count * self.nll + more * newer.nll) / (count + more)
        return PromptScore((*self.top1_matches, *newer.top1_matches), nll)


NO_PROMPT_SCORE = PromptScore()
