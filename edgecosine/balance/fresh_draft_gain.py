"""Whether to wait for fresh drafts where some were made ahead.

What is there already ends in leaves, and drafters that are asked go on from these. How many tokens
that adds for each leaf on the target's path is learned from the rounds that asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgecosine.balance.plan import ALONE, CoBatchedRequests, Plan, speed_of, worthwhile_nodes

MEMORY = 50.0
"""Leaves after which what was learned has faded to 1/e."""
PRIOR_WEIGHT = 4.0
FIRST_GAIN = 1.0


@dataclass(slots=True)
class FreshDraftGain:
    """Tokens that asking adds for each leaf which the target is expected to reach."""

    added: float = 0.0
    leaves: float = 0.0

    def observe(self, before: float, after: float, open_reach: float) -> None:
        """Fresh drafts raised the tokens expected of a round from `before` to `after`."""
        fade = max(0.0, 1.0 - open_reach / MEMORY)
        self.added = self.added * fade + max(0.0, after - before)
        self.leaves = self.leaves * fade + open_reach

    @property
    def per_leaf(self) -> float:
        """Posterior mean."""
        return (self.added + PRIOR_WEIGHT * FIRST_GAIN) / (self.leaves + PRIOR_WEIGHT)


def pays_to_ask(
    reached: Sequence[float],
    open_reach: float,
    gain: FreshDraftGain,
    plan: Plan,
    pass_s: Sequence[float],
    company: CoBatchedRequests = ALONE,
) -> bool:
    """Whether a round that waits for the plan's drafts gives more tokens per second than one that
    verifies what is there, whose nodes are accepted with the probabilities `reached`."""
    nodes = worthwhile_nodes(reached, pass_s, 0.0, company)
    tokens, round_s = 1.0 + sum(reached[:nodes]), pass_s[nodes + 1]
    more = tokens + gain.per_leaf * open_reach
    return speed_of(more, plan.draft_s, round_s, company) > speed_of(tokens, 0.0, round_s, company)
