"""One round of a request, from its plan to the drafts that are fused."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgecosine.balance.drafter_table import DrafterTable
from edgecosine.balance.plan import MAX_NODES, Plan
from edgecosine.balance.request_state import RequestState
from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.fusion.fuse import DraftUnion, path_probabilities
from edgecosine.protocol.wire.tree import EMPTY_TREE


class Round(msgspec.Struct, frozen=True):
    """A plan, and the drafts of its round."""

    plan: Plan
    drafts: Sequence[DrafterTree] = ()
    is_ready: bool = True
    """Whether drafts made ahead are verified without a wait for fresh ones."""
    union: DraftUnion | None = None
    """Of `drafts`, if the decision about the wait has computed it."""
    tokens_ahead: float | None = None
    """Tokens expected of the drafts made ahead, if the round waits although there are some."""
    leaf_mass_ahead: float = 0.0

    def with_drafts(self, drafts: Sequence[DrafterTree]) -> Round:
        """The round with the drafts that it has waited for."""
        return msgspec.structs.replace(self, drafts=drafts, union=None)


def union_of(
    drafts: Sequence[DrafterTree], request: RequestState, drafters: DrafterTable
) -> DraftUnion:
    """The union of drafts by the request's policy, and of the target's own draft."""
    policy = request.policy
    if not policy.width:
        drafts = [draft.chain() for draft in drafts]
    chances = [_probabilities(draft, request, drafters) for draft in drafts]
    own = request.own_draft
    if not policy.fuses:
        sums = [_expected_accepted(*each) for each in zip(drafts, chances, strict=True)]
        sums.append(sum(path_probabilities(own)))
        best = sums.index(max(sums))
        # The other drafts stay as empty ones, since a proposer's bit is its draft's place.
        empty = [msgspec.structs.replace(draft, tree=EMPTY_TREE) for draft in drafts]
        chances = [each if n == best else () for n, each in enumerate(chances)]
        own = own if best == len(drafts) else EMPTY_TREE
        drafts = [*empty[:best], *drafts[best : best + 1], *empty[best + 1 :]]
    return DraftUnion(drafts, chances, own)


def _probabilities(
    draft: DrafterTree, request: RequestState, drafters: DrafterTable
) -> Sequence[float]:
    if not request.policy.is_calibrated:
        return draft.tree.confidences
    calibration = drafters.get(draft.node_id).calibration(is_greedy=request.is_greedy)
    return calibration.probabilities(draft.tree.confidences)


def _expected_accepted(draft: DrafterTree, chances: Sequence[float]) -> float:
    return sum(path_probabilities(DraftUnion([draft], [chances]).tree(MAX_NODES)))
