"""Whether a round waits for fresh drafts although some were made ahead.

Drafts made ahead end in leaves, and fresh drafts continue them. The tokens that this adds for each
leaf on the accepted path are learned from the rounds that waited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgecosine.balance.plan import ALONE, CoBatchedRequests, Plan, speed_of, worthwhile_nodes

MEMORY = 50.0
"""Leaves after which older evidence has faded to 1/e."""
PRIOR_WEIGHT = 4.0
FIRST_GAIN = 1.0


@dataclass(slots=True)
class FreshDraftGain:
    """Tokens that fresh drafts add for each leaf that the target is expected to accept."""

    added: float = 0.0
    leaves: float = 0.0

    def observe(self, before: float, after: float, leaf_mass: float) -> None:
        """Fresh drafts raised the tokens expected of a round from `before` to `after`."""
        fade = max(0.0, 1.0 - leaf_mass / MEMORY)
        self.added = self.added * fade + max(0.0, after - before)
        self.leaves = self.leaves * fade + leaf_mass

    @property
    def per_leaf(self) -> float:
        """Posterior mean."""
        return (self.added + PRIOR_WEIGHT * FIRST_GAIN) / (self.leaves + PRIOR_WEIGHT)


def pays_to_wait(
    path_probabilities: Sequence[float],
    leaf_mass: float,
    gain: FreshDraftGain,
    plan: Plan,
    pass_s: Sequence[float],
    co_batched: CoBatchedRequests = ALONE,
) -> bool:
    """Whether a round that waits for the plan's drafts gives more tokens per second than one that
    verifies the drafts made ahead, whose nodes have these path probabilities."""
    nodes = worthwhile_nodes(path_probabilities, pass_s, 0.0, co_batched)
    tokens, round_s = 1.0 + sum(path_probabilities[:nodes]), pass_s[nodes + 1]
    more = tokens + gain.per_leaf * leaf_mass
    waiting = speed_of(more, plan.draft_s, round_s, co_batched)
    return waiting > speed_of(tokens, 0.0, round_s, co_batched)
