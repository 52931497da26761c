"""Decides whether a round waits for fresh drafts, or verifies its drafts ahead, if any, at once.

Drafts made ahead end in leaves, and fresh drafts continue them; without drafts the root is the only
leaf. The tokens that fresh drafts add for each leaf on the accepted path are learned from the
rounds that waited.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgecosine.balance.plan import ALONE, CoBatchedRequests, worthwhile_nodes

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
    draft_s: float,
    pass_s: Sequence[float],
    co_batched: CoBatchedRequests = ALONE,
    tokens_per_s: float = 0.0,
) -> bool:
    """Whether to wait `draft_s` for fresh drafts rather than verify the drafts ahead at once.

    The nodes of the drafts ahead have these path probabilities; without nodes the alternative is
    plain decoding. The wait must gain more tokens than the request commits otherwise in the same
    time, at its former `tokens_per_s` or as in this round. Among other requests a request that
    waits misses whole passes.
    """
    nodes = worthwhile_nodes(path_probabilities, pass_s, 0.0, co_batched)
    round_s = pass_s[nodes + 1] + co_batched.bookkeeping_s
    if co_batched.requests and round_s > 0.0:
        draft_s = math.ceil(draft_s / round_s) * round_s
    now_per_s = (1.0 + sum(path_probabilities[:nodes])) / max(round_s, 1e-9)
    return gain.per_leaf * leaf_mass > max(tokens_per_s, now_per_s) * draft_s
