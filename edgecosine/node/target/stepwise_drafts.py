"""Fusion within a round (CoSine, section 4.3): drafters continue a common trunk.

Every `interval` tokens all drafters are asked, the most confident draft becomes the next piece of
the trunk, and the other drafts stay as its siblings. A drafter that is late or sends an empty draft
is not asked again in this round.
"""

from __future__ import annotations

from msgspec.structs import replace

from edgecosine.balance.acceptance_statistics import AcceptanceStatistics
from edgecosine.balance.plan import Plan
from edgecosine.balance.request_state import RequestState
from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.node.target.draft_client import DraftClient


async def gather_by_steps(
    draft_client: DraftClient,
    acceptance: AcceptanceStatistics,
    request: RequestState,
    plan: Plan,
) -> list[DrafterTree]:
    """The drafts of a round, each below the trunk that it continues."""
    trunk = DrafterTree("", 0)
    drafts: list[DrafterTree] = []
    drafters = plan.drafters
    while len(trunk) < plan.gamma and drafters:
        size = min(plan.interval, plan.gamma - len(trunk))
        step = replace(plan, drafters=drafters, gamma=size, width=1)
        answers = await draft_client.gather(step, trunk.tree.tokens)
        pieces = [draft.chain(size) for draft in answers if len(draft)]
        drafters = tuple(piece.node_id for piece in pieces)
        drafts += [piece.below(trunk) for piece in pieces]
        if pieces:
            trunk = acceptance.most_confident(request, pieces).below(trunk)
    return drafts
