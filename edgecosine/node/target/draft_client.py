"""One session's talk with its drafters: asks them, keeps them in step, times them.

What a drafter says is checked here and never believed: a draft that makes no sense is an empty one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from edgecosine.balance.plan import Plan
from edgecosine.balance.planner import Planner
from edgecosine.errors import LinkError
from edgecosine.fusion.proposal import Proposal
from edgecosine.node.runtime.clock import now
from edgecosine.node.target.request_metrics import RequestMetrics
from edgecosine.protocol.wire.messages import (
    MAX_DRAFT_TOKENS,
    MAX_PREFIX_TOKENS,
    AnyMessage,
    Draft,
    DraftRequest,
    OutOfStep,
    Release,
    SharedNoise,
    pack_shares,
    pack_tokens,
    prefix_digest,
    read_tree,
)
from edgecosine.protocol.wire.prefix import Prefix
from edgecosine.protocol.wire.prompt_score import PromptScore
from edgecosine.protocol.wire.tree import TokenTree

logger = logging.getLogger(__name__)

LONGEST_ASKED = MAX_PREFIX_TOKENS - MAX_DRAFT_TOKENS
"""Tokens of a sequence that fit into a request, with a trunk behind them."""


class DrafterLink(Protocol):
    """What a session needs of a link."""

    @property
    def max_context(self) -> int:
        """Tokens that the drafter's sequences may have; 0 where it did not say."""

    async def ask(self, request: DraftRequest) -> Draft | OutOfStep:
        """Raises LinkLost when the link ends."""

    def send(self, message: AnyMessage) -> None:
        """Raises LinkLost when the link has ended."""


DrafterLinks = Callable[[], Mapping[str, DrafterLink]]
"""Gives the drafters that are linked now, by node id."""

DraftTask = asyncio.Task[Proposal | None]


class DraftClient:
    """Asks drafters what may follow a sequence that grows. One for each session."""

    def __init__(
        self,
        *,
        key: str,
        sequence: Prefix,
        coupling: SharedNoise,
        num_vocabulary: int,
        links: DrafterLinks,
        balancer: Planner,
        tally: RequestMetrics,
    ) -> None:
        self._key, self._sequence, self._coupling = key, sequence, coupling
        self._num_vocabulary, self._links = num_vocabulary, links
        self._balancer, self._tally = balancer, tally
        self._held: dict[str, int] = {}
        """Tokens of the sequence that each drafter was told, by node id."""
        self._round = 0
        self._outgrown: dict[str, str] = {}
        """Why drafters are left out for good, by node id."""

    def __repr__(self) -> str:
        return f"<DraftClient {self._key} [round {self._round}, {len(self._held)} drafters told]>"

    @property
    def linked(self) -> Collection[str]:
        """Drafters that are linked now and can read the whole sequence, by node id."""
        able = []
        for node_id, link in self._links().items():
            most = min(link.max_context or LONGEST_ASKED, LONGEST_ASKED)
            if len(self._sequence) > most:
                self._leave_out(node_id, most)
            else:
                able.append(node_id)
        return able

    def explain(self, plan: Plan) -> Plan:
        """The plan, which also says who could not be part of it where nobody is."""
        if plan.drafters or not self._outgrown:
            return plan
        return replace(plan, reason="; ".join([plan.reason, *self._outgrown.values()]))

    def _leave_out(self, node_id: str, max_context: int) -> None:
        """Say once that a drafter cannot read the sequence any more."""
        if node_id in self._outgrown:
            return
        reason = f"{node_id} reads {max_context} tokens at most, the text has {len(self._sequence)}"
        self._outgrown[node_id] = reason
        logger.info("not asked: request=%s peer=%s reason=%s", self._key, node_id, reason)

    def begin_round(self) -> None:
        """Answers to what was asked before are of no use any more."""
        self._round += 1

    async def gather(self, plan: Plan, trunk: Sequence[int] = ()) -> list[Proposal]:
        """What the plan's drafters propose, after the sequence and `trunk`, before its deadline."""
        async with asyncio.TaskGroup() as group:
            asks = self.start(group, plan, trunk=trunk)
        return answers(asks)

    def start(
        self,
        group: asyncio.TaskGroup,
        plan: Plan,
        *,
        trunk: Sequence[int] = (),
        ahead: TokenTree | None = None,
    ) -> list[DraftTask]:
        """Ask the plan's drafters; with `ahead`, for what comes after that tree's outcomes."""
        links = self._links()
        chosen = [(node_id, links[node_id]) for node_id in plan.drafters if node_id in links]
        return [
            group.create_task(self._ask(node_id, link, plan, trunk, ahead), name=f"ask {node_id}")
            for node_id, link in chosen
        ]

    def release(self) -> None:
        """The session is over: whoever was told of it may forget it."""
        links = self._links()
        for node_id in self._held:
            if node_id in links:
                try:
                    links[node_id].send(Release(self._key))
                except LinkError:
                    logger.debug("drafter gone before release: peer=%s", node_id)

    async def _ask(
        self,
        node_id: str,
        link: DrafterLink,
        plan: Plan,
        trunk: Sequence[int],
        ahead: TokenTree | None,
    ) -> Proposal | None:
        """One drafter's proposal, or None when it is late or lost."""
        started = now()
        prefix_len = len(self._sequence) + len(trunk)
        try:
            async with asyncio.timeout(plan.deadline_s):
                draft = await self._draft_from(node_id, link, plan, trunk, ahead)
        except TimeoutError:
            self._tally.late[node_id] += 1
            self._balancer.observe_late(node_id, plan.deadline_s)
            return None
        except LinkError:
            self._held.pop(node_id, None)
            return None
        elapsed_s = now() - started
        compute_s = draft.compute_us * 1e-6 if draft else 0.0
        proposal = self._proposal(node_id, prefix_len, draft)
        if ahead is None:
            num_tokens = min(plan.gamma, len(proposal))
            is_disturbed = plan.is_trial or len(plan.drafters) > 1
            self._balancer.observe_answer(
                node_id, elapsed_s, compute_s, num_tokens, is_disturbed=is_disturbed
            )
        elif draft is not None:
            self._balancer.observe_ahead(node_id, compute_s, plan.gamma)
        return proposal

    def _proposal(self, node_id: str, prefix_len: int, draft: Draft | None) -> Proposal:
        """What a drafter's answer says; one that makes no sense says nothing."""
        if draft is None:
            return Proposal(node_id, prefix_len, (), ())
        tree = read_tree(draft.tokens, draft.parents, draft.confidences)
        if tree is None or max(tree.tokens, default=0) >= self._num_vocabulary:
            logger.warning("draft refused: request=%s peer=%s", self._key, node_id)
            return Proposal(node_id, prefix_len, (), ())
        hindsight = PromptScore(tuple(map(bool, draft.top1_matches)), draft.nll)
        shares, parents = tree.confidences, tree.parents
        return Proposal(node_id, prefix_len, tree.tokens, shares, parents, hindsight)

    async def _draft_from(
        self,
        node_id: str,
        link: DrafterLink,
        plan: Plan,
        trunk: Sequence[int],
        ahead: TokenTree | None,
    ) -> Draft | None:
        """Ask once; a drafter that is out of step is told what it lacks and asked again."""
        asked = now()
        draft: Draft | None = None
        try:
            for attempt in range(2):
                if attempt:
                    self._balancer.observe_asked_again()
                reply = await link.ask(self._request(node_id, plan, trunk, ahead))
                if isinstance(reply, Draft):
                    draft = reply
                    break
                self._held[node_id] = min(reply.have, self._held[node_id])
        finally:
            self._tally.trace.drafted(node_id, asked, draft)
        return draft

    def _request(
        self, node_id: str, plan: Plan, trunk: Sequence[int], ahead: TokenTree | None
    ) -> DraftRequest:
        held = self._held.get(node_id, 0)
        self._held[node_id] = len(self._sequence)
        new_tokens = [*self._sequence.tokens[held:], *trunk]
        tree = ahead or TokenTree()
        return DraftRequest(
            request_id=self._key,
            round=self._round,
            prefix_len=len(self._sequence) + len(trunk),
            prefix_digest=prefix_digest(trunk, self._sequence.digest()),
            new_tokens=pack_tokens(new_tokens),
            num_tokens=plan.gamma,
            width=plan.width,
            coupling=self._coupling,
            is_ahead=ahead is not None,
            tree_tokens=pack_tokens(tree.tokens),
            tree_parents=bytes(parent + 1 for parent in tree.parents),
            tree_confidences=pack_shares(tree.confidences),
            outcome_shares=plan.shares.get(node_id, b""),
        )


def answers(asks: Iterable[DraftTask]) -> list[Proposal]:
    """What was said by those who answered."""
    done = (ask.result() for ask in asks if not ask.cancelled())
    return [proposal for proposal in done if proposal is not None]
