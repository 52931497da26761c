"""Fusion within a round (CoSine, section 4.3): drafters go on from a common trunk.

Every `interval` tokens all drafters are asked, the most confident draft becomes the next piece of
the trunk, and the others stay as its siblings. Whoever is late or has nothing to say is not asked
again in this round.
"""

from __future__ import annotations

from dataclasses import replace

from edgecosine.balance.plan import Plan
from edgecosine.balance.planner import Planner
from edgecosine.balance.statistics import RequestState
from edgecosine.fusion.proposal import Proposal
from edgecosine.node.target.draft_client import DraftClient


async def gather_by_steps(
    draft_client: DraftClient, planner: Planner, state: RequestState, plan: Plan
) -> list[Proposal]:
    """The drafts of a round, each laid below the trunk that it continues."""
    trunk = Proposal("", 0, (), ())
    laid: list[Proposal] = []
    drafters = plan.drafters
    while len(trunk) < plan.gamma and drafters:
        size = min(plan.interval, plan.gamma - len(trunk))
        step = replace(plan, drafters=drafters, gamma=size, width=1)
        answers = await draft_client.gather(step, trunk.tokens)
        drafts = [_cut(draft.chain(), size) for draft in answers if len(draft)]
        drafters = tuple(draft.node_id for draft in drafts)
        laid += [_below(trunk, draft) for draft in drafts]
        if drafts:
            trunk = _below(trunk, planner.most_confident(state, drafts))
    return laid


def _cut(draft: Proposal, size: int) -> Proposal:
    return replace(draft, tokens=draft.tokens[:size], confidences=draft.confidences[:size])


def _below(trunk: Proposal, draft: Proposal) -> Proposal:
    """A draft made after a trunk, as one made after the sequence."""
    return Proposal(
        draft.node_id,
        draft.prefix_len - len(trunk),
        (*trunk.tokens, *draft.tokens),
        (*trunk.confidences, *draft.confidences),
        trunk=len(trunk),
    )
