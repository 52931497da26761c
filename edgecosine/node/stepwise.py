"""Fusion within a round (CoSine, section 4.3): drafters go on from a common trunk.

Every `interval` tokens all drafters are asked, the most confident draft becomes the next piece of
the trunk, and the others stay as its siblings.
"""

from __future__ import annotations

from dataclasses import replace

from edgecosine.balance.plan import Plan
from edgecosine.fusion.proposal import Proposal
from edgecosine.node.balancer import Balancer
from edgecosine.node.consulting import Consulting
from edgecosine.node.learning import RequestState


async def gather_by_steps(
    consulting: Consulting, balancer: Balancer, state: RequestState, plan: Plan
) -> list[Proposal]:
    """The drafts of a round, each laid below the trunk that it continues."""
    trunk = Proposal("", 0, (), ())
    laid: list[Proposal] = []
    while len(trunk) < plan.gamma:
        size = min(state.policy.interval, plan.gamma - len(trunk))
        step = replace(plan, gamma=size, width=1)
        drafts = [
            _cut(draft.chain(), size) for draft in await consulting.gather(step, trunk.tokens)
        ]
        drafts = [draft for draft in drafts if len(draft)]
        if not drafts:
            break
        laid += [_below(trunk, draft) for draft in drafts]
        winner = balancer.most_confident(state, drafts)
        trunk = _below(trunk, winner)
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
    )
