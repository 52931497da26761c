"""The plans of a session's rounds, and the drafts that are made for them."""

from __future__ import annotations

from collections.abc import Sequence

from edgecosine.balance.baselines.planner import BaselinePlanner
from edgecosine.balance.plan import Plan
from edgecosine.balance.planner import Planner
from edgecosine.balance.request_state import RequestState
from edgecosine.balance.round import Round
from edgecosine.balance.statistics import Statistics
from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.node.target.asked_draft import AskedDraft
from edgecosine.node.target.draft_client import DraftClient
from edgecosine.node.target.stepwise_drafts import gather_by_steps
from edgecosine.node.target.verifier import Verifier
from edgecosine.protocol.wire.tree import TokenTree


class Drafting:
    """Plans and drafts of one session."""

    def __init__(
        self,
        key: str,
        request: RequestState,
        planner: Planner | BaselinePlanner,
        statistics: Statistics,
        client: DraftClient,
        verifier: Verifier,
    ) -> None:
        self._key, self._request, self._planner = key, request, planner
        self._statistics, self._client, self._verifier = statistics, client, verifier
        self.next_plan: Plan | None = None
        """Of the next round, if it was made while the pass ran."""

    def __repr__(self) -> str:
        return f"<Drafting {self._key} [{'planned' if self.next_plan else 'no plan'}]>"

    def take_plan(self, room: int) -> Plan | None:
        """The plan that was made while the last pass ran, if it still fits."""
        plan, self.next_plan = self.next_plan, None
        if plan is None or plan.gamma >= room:
            return None
        return plan if self._client.able(plan.drafters) == [*plan.drafters] else None

    def make_plan(self, room: int) -> Plan:
        """The plan of the next round, by the present statistics, with `room` tokens to generate."""
        client = self._client
        asked = client.ready if self._request.policy.is_adaptive else client.linked
        return client.explain(self._planner.plan(self._request, asked, room))

    async def gather(self, current: Round) -> list[DrafterTree]:
        """Fresh drafts, and those made ahead by drafters that did not answer."""
        plan = current.plan
        self._verifier.expect(self._key, plan.draft_s, 1 + plan.gamma)
        if plan.interval:
            acceptance = self._statistics.acceptance
            drafts = await gather_by_steps(self._client, acceptance, self._request, plan)
        else:
            drafts = await self._client.gather(plan)
        answered = {draft.node_id for draft in drafts}
        return [*drafts, *(draft for draft in current.drafts if draft.node_id not in answered)]

    async def take(
        self, tree: TokenTree, drafts: Sequence[AskedDraft], patience_s: float, grace_s: float = 0.0
    ) -> tuple[list[DrafterTree], list[DrafterTree]]:
        """The drafts that were made during the pass of `tree`, and those of probes that end within
        `grace_s`, after the pass."""
        client = self._client
        self._verifier.expect(self._key, patience_s, 1 + len(tree))
        await client.wait.any_of(drafts, patience_s)
        await client.wait.any_of(client.probes.values(), grace_s)
        return client.take(drafts), client.take_probes()
