"""Requests drafts for one session, keeps the drafters' prefixes in step and measures their times.

Drafts are checked here. An invalid draft counts as an empty one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from edgecosine.balance.drafter_table import SHORTLIST
from edgecosine.balance.plan import Plan
from edgecosine.balance.statistics import Statistics
from edgecosine.errors import LinkError
from edgecosine.fusion.drafter_tree import DrafterTree
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

LONGEST_PREFIX = MAX_PREFIX_TOKENS - MAX_DRAFT_TOKENS
"""Tokens of a sequence that fit into a draft request, with a trunk behind them."""


class DrafterLink(Protocol):
    """What a session needs of a link."""

    @property
    def max_context(self) -> int:
        """Longest sequence of the drafter in tokens; 0 if unknown."""

    @property
    def is_leaving(self) -> bool:
        """Whether the drafter accepts no more requests."""

    async def ask(self, request: DraftRequest) -> Draft | OutOfStep:
        """Raises LinkLost when the link ends."""

    def send(self, message: AnyMessage) -> None:
        """Raises LinkLost when the link has ended."""


DrafterLinks = Callable[[], Mapping[str, DrafterLink]]
"""Returns the drafters that are linked now, by node id."""

DraftTask = asyncio.Task[DrafterTree | None]


class DraftClient:
    """Requests drafts that continue a growing sequence. One for each session."""

    def __init__(
        self,
        *,
        key: str,
        sequence: Prefix,
        noise: SharedNoise,
        num_vocabulary: int,
        links: DrafterLinks,
        statistics: Statistics,
        metrics: RequestMetrics,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._key, self._sequence, self._noise = key, sequence, noise
        self._num_vocabulary, self._links = num_vocabulary, links
        self._statistics, self._metrics, self._tasks = statistics, metrics, tasks
        self._num_sent: dict[str, int] = {}
        """Tokens of the sequence that each drafter has, by node id."""
        self._round = 0
        self._has_drafted: dict[str, None] = {}
        """Node ids of the drafters that have read the prompt and drafted, the latest last; those of
        a shortlist at most."""
        self._probes: dict[str, DraftTask] = {}
        """Probes whose drafts have not been taken, by node id."""
        self._too_short: dict[str, str] = {}
        """Why drafters cannot read the sequence any more, by node id."""

    def __repr__(self) -> str:
        return f"<DraftClient {self._key} [round {self._round}, {len(self._num_sent)} drafters]>"

    @property
    def links(self) -> Mapping[str, DrafterLink]:
        """The links that there are now, by node id."""
        return self._links()

    @property
    def linked(self) -> Collection[str]:
        """Node ids of all linked drafters that can read the whole sequence."""
        return self.able(self._links())

    @property
    def ready(self) -> Collection[str]:
        """Those of `linked` that have drafted for this request: others first read its text."""
        return self.able(self._has_drafted)

    def able(self, node_ids: Iterable[str]) -> list[str]:
        """Those of `node_ids` that are linked and can read the whole sequence."""
        links, able = self._links(), []
        for node_id in node_ids:
            link = links.get(node_id)
            if link is None or link.is_leaving:
                continue
            most = min(link.max_context or LONGEST_PREFIX, LONGEST_PREFIX)
            if len(self._sequence) > most:
                self._leave_out(node_id, most)
            else:
                able.append(node_id)
        return able

    def explain(self, plan: Plan) -> Plan:
        """The plan; one without drafters also names those that cannot read the sequence."""
        if plan.drafters or not self._too_short:
            return plan
        return replace(plan, reason="; ".join([plan.reason, *self._too_short.values()]))

    def _leave_out(self, node_id: str, max_context: int) -> None:
        """Log once that a drafter cannot read the sequence any more."""
        if node_id in self._too_short:
            return
        reason = f"{node_id} reads {max_context} tokens at most, the text has {len(self._sequence)}"
        self._too_short[node_id] = reason
        logger.info("drafter left out: request=%s peer=%s reason=%s", self._key, node_id, reason)

    def begin_round(self) -> None:
        """Start a round; drafts of earlier requests become stale."""
        self._round += 1

    async def gather(self, plan: Plan, trunk: Sequence[int] = ()) -> list[DrafterTree]:
        """The drafts of the plan's drafters after the sequence and `trunk`, before its deadline."""
        async with asyncio.TaskGroup() as group:
            tasks = self.start(group, plan, trunk=trunk)
        return drafts_of(tasks)

    def start(
        self,
        group: asyncio.TaskGroup,
        plan: Plan,
        *,
        trunk: Sequence[int] = (),
        ahead: TokenTree | None = None,
    ) -> list[DraftTask]:
        """Request drafts from the plan's drafters; with `ahead`, after that tree's endpoints."""
        links = self._links()
        chosen = [(node_id, links[node_id]) for node_id in plan.drafters if node_id in links]
        for node_id, _ in chosen:
            self._end_probe(node_id)
        return [
            group.create_task(self._draft(node_id, link, plan, trunk, ahead), name=f"ask {node_id}")
            for node_id, link in chosen
        ]

    @property
    def probes(self) -> Mapping[str, DraftTask]:
        """The probes whose drafts have not been taken, by node id."""
        return self._probes

    def probe(self, plan: Plan) -> None:
        """Request drafts that no round waits for: a probe may take several rounds, and ends when
        its drafter is requested to draft again."""
        links = self._links()
        for node_id in self.able(plan.drafters):
            self._probes[node_id] = self._tasks.create_task(
                self._draft(node_id, links[node_id], plan, (), None), name=f"probe {node_id}"
            )

    def take_probes(self) -> list[DrafterTree]:
        """The drafts of the probes that have ended."""
        ended = [node_id for node_id, task in self._probes.items() if task.done()]
        return drafts_of([self._probes.pop(node_id) for node_id in ended])

    def _end_probe(self, node_id: str) -> None:
        task = self._probes.get(node_id)
        if task is not None and not task.done():
            del self._probes[node_id]
            task.cancel()

    def release(self) -> None:
        """End the session: request the drafters to drop its prefix."""
        for node_id in list(self._probes):
            self._end_probe(node_id)
        links = self._links()
        for node_id in self._num_sent:
            if node_id in links:
                try:
                    links[node_id].send(Release(self._key))
                except LinkError:
                    logger.debug("link ended before release: peer=%s", node_id)

    async def _draft(
        self,
        node_id: str,
        link: DrafterLink,
        plan: Plan,
        trunk: Sequence[int],
        ahead: TokenTree | None,
    ) -> DrafterTree | None:
        """One drafter's draft; None if it is late or the link is lost."""
        started = now()
        prefix_len = len(self._sequence) + len(trunk)
        try:
            async with asyncio.timeout(plan.deadline_s):
                draft = await self._request_draft(node_id, link, plan, trunk, ahead)
        except TimeoutError:
            self._metrics.late[node_id] += 1
            self._statistics.observe_late(node_id, plan.deadline_s)
            return None
        except asyncio.CancelledError:
            if ahead is not None:
                self._statistics.observe_ahead_late(node_id)
            raise
        except LinkError:
            self._num_sent.pop(node_id, None)
            self._has_drafted.pop(node_id, None)
            return None
        if draft is not None:
            self._note_drafter(node_id)
        elapsed_s = now() - started
        compute_s = draft.compute_us * 1e-6 if draft else 0.0
        tree = self._checked(node_id, prefix_len, draft)
        if ahead is None:
            num_tokens = min(plan.gamma, len(tree))
            is_disturbed = plan.is_probe or len(plan.drafters) > 1
            self._statistics.observe_answer(
                node_id, elapsed_s, compute_s, num_tokens, is_disturbed=is_disturbed
            )
        elif draft is not None:
            self._statistics.observe_ahead(node_id, elapsed_s, compute_s, plan.gamma)
        return tree

    def _note_drafter(self, node_id: str) -> None:
        """The drafter has read the text; it takes the place of the one that drafted the longest
        ago if there are too many."""
        self._has_drafted.pop(node_id, None)
        self._has_drafted[node_id] = None
        if len(self._has_drafted) > SHORTLIST:
            del self._has_drafted[next(iter(self._has_drafted))]

    def _checked(self, node_id: str, prefix_len: int, draft: Draft | None) -> DrafterTree:
        """The tree of a draft; an empty one if the draft is missing or invalid."""
        if draft is None:
            return DrafterTree(node_id, prefix_len)
        tree = read_tree(draft.tokens, draft.parents, draft.confidences)
        if tree is None or max(tree.tokens, default=0) >= self._num_vocabulary:
            logger.warning("draft refused: request=%s peer=%s", self._key, node_id)
            return DrafterTree(node_id, prefix_len)
        score = PromptScore(tuple(map(bool, draft.top1_matches)), draft.nll)
        return DrafterTree(node_id, prefix_len, tree, score)

    async def _request_draft(
        self,
        node_id: str,
        link: DrafterLink,
        plan: Plan,
        trunk: Sequence[int],
        ahead: TokenTree | None,
    ) -> Draft | None:
        """One drafter's answer; a drafter that lacks tokens gets a second request with them."""
        asked = now()
        draft: Draft | None = None
        try:
            for attempt in range(2):
                if attempt:
                    self._statistics.observe_retry()
                reply = await link.ask(self._request(node_id, plan, trunk, ahead))
                if isinstance(reply, Draft):
                    draft = reply
                    break
                self._num_sent[node_id] = min(reply.have, self._num_sent[node_id])
        finally:
            self._metrics.trace.drafted(node_id, asked, draft)
        return draft

    def _request(
        self, node_id: str, plan: Plan, trunk: Sequence[int], ahead: TokenTree | None
    ) -> DraftRequest:
        num_sent = self._num_sent.get(node_id, 0)
        self._num_sent[node_id] = len(self._sequence)
        new_tokens = [*self._sequence.tokens[num_sent:], *trunk]
        tree = ahead or TokenTree()
        return DraftRequest(
            request_id=self._key,
            round=self._round,
            prefix_len=len(self._sequence) + len(trunk),
            prefix_digest=prefix_digest(trunk, self._sequence.digest()),
            new_tokens=pack_tokens(new_tokens),
            num_tokens=plan.gamma,
            width=plan.width,
            coupling=self._noise,
            is_ahead=ahead is not None,
            tree_tokens=pack_tokens(tree.tokens),
            tree_parents=bytes(parent + 1 for parent in tree.parents),
            tree_confidences=pack_shares(tree.confidences),
            outcome_shares=plan.shares.get(node_id, b""),
        )


def drafts_of(tasks: Iterable[DraftTask]) -> list[DrafterTree]:
    """The drafts of the tasks that were not cancelled, late or lost."""
    done = (task.result() for task in tasks if not task.cancelled())
    return [draft for draft in done if draft is not None]
