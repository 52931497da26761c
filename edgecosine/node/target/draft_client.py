"""Requests drafts for one session, keeps the drafters' prefixes in step and measures their times.

Drafts are checked here. An invalid draft counts as an empty one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial

from msgspec.structs import replace

from edgecosine.balance.drafter_table import SHORTLIST
from edgecosine.balance.plan import Plan
from edgecosine.balance.statistics import Statistics
from edgecosine.errors import LinkError
from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.node.links.pending_requests import Reply
from edgecosine.node.runtime.clock import now
from edgecosine.node.target.asked_draft import AskedDraft, DraftWait
from edgecosine.node.target.drafter_link import DrafterLink, DrafterLinks
from edgecosine.node.target.request_metrics import RequestMetrics
from edgecosine.protocol.wire.messages import (
    MAX_DRAFT_TOKENS,
    MAX_PREFIX_TOKENS,
    Draft,
    DraftRequest,
    OutOfStep,
    PackedTree,
    Release,
    SharedNoise,
    pack_tokens,
    pack_tree,
    prefix_digest,
    read_tree,
)
from edgecosine.protocol.wire.prefix import Prefix
from edgecosine.protocol.wire.prompt_score import PromptScore
from edgecosine.protocol.wire.tree import TokenTree

logger = logging.getLogger(__name__)

LONGEST_PREFIX = MAX_PREFIX_TOKENS - MAX_DRAFT_TOKENS
"""Tokens of a sequence that fit into a draft request, with a trunk behind them."""

MAX_REQUESTS_OF_A_DRAFT = 2
"""A drafter that lacks tokens gets a second request with them."""


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
    ) -> None:
        self._key, self._sequence, self._noise = key, sequence, noise
        self._num_vocabulary, self._links = num_vocabulary, links
        self._statistics, self._metrics = statistics, metrics
        self._num_sent: dict[str, int] = {}
        """Tokens of the sequence that each drafter has, by node id."""
        self._round = 0
        self._has_drafted: dict[str, None] = {}
        """Node ids of the drafters that have read the prompt and drafted, the latest last; those of
        a shortlist at most."""
        self._probes: dict[str, AskedDraft] = {}
        """Probes whose drafts have not been taken, by node id."""
        self._awaited: dict[AskedDraft, None] = {}
        """All drafts that are not there yet."""
        self.wait = DraftWait()
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
        links, able, length = self._links(), list[str](), len(self._sequence)
        for node_id in node_ids:
            link = links.get(node_id)
            if link is None or link.is_leaving:
                continue
            most = min(link.max_context or LONGEST_PREFIX, LONGEST_PREFIX)
            if length > most:
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
        drafts = self.start(plan, trunk=trunk)
        await self.wait.all_of(drafts, plan.deadline_s)
        return self.take(drafts)

    def start(
        self, plan: Plan, *, trunk: Sequence[int] = (), ahead: TokenTree | None = None
    ) -> list[AskedDraft]:
        """Request drafts from the plan's drafters; with `ahead`, after that tree's endpoints."""
        links = self._links()
        packed = None if ahead is None else pack_tree(ahead)
        chosen = [node_id for node_id in plan.drafters if node_id in links]
        for node_id in chosen:
            self._end_probe(node_id)
        return [self._ask(links[node_id], node_id, plan, trunk, packed) for node_id in chosen]

    def take(self, drafts: Iterable[AskedDraft]) -> list[DrafterTree]:
        """The drafts that are there; the others are late, and given up.

        Raises what the handling of a reply raised.
        """
        for asked in drafts:
            if asked.error is not None:
                raise asked.error
            if not asked.is_over:
                self._give_up(asked)
                if asked.is_ahead:
                    self._statistics.observe_ahead_late(asked.node_id)
                else:
                    self._note_late(asked)
        return [asked.tree for asked in drafts if asked.tree is not None]

    @property
    def probes(self) -> Mapping[str, AskedDraft]:
        """The probes whose drafts have not been taken, by node id."""
        return self._probes

    @property
    def has_probed(self) -> bool:
        """Whether a probe has ended, or is late, whose draft was not taken."""
        return bool(self._probes) and bool(self._ended_probes())

    def probe(self, plan: Plan) -> None:
        """Request drafts that no round waits for: a probe may take several rounds, and ends when
        its drafter is requested to draft again."""
        links = self._links()
        for node_id in self.able(plan.drafters):
            self._probes[node_id] = self._ask(links[node_id], node_id, plan)

    def take_probes(self) -> list[DrafterTree]:
        """The drafts of the probes that have ended; late ones are given up."""
        ended = self._ended_probes() if self._probes else ()
        return self.take([self._probes.pop(asked.node_id) for asked in ended])

    def _ended_probes(self) -> list[AskedDraft]:
        moment = now()
        return [
            asked
            for asked in self._probes.values()
            if asked.is_over or moment - asked.asked_s > asked.plan.deadline_s
        ]

    def _end_probe(self, node_id: str) -> None:
        probe = self._probes.get(node_id)
        if probe is not None and not probe.is_over:
            del self._probes[node_id]
            self._give_up(probe)

    def release(self) -> None:
        """End the session: request the drafters to drop its prefix."""
        for asked in [*self._awaited]:
            self._give_up(asked)
        links = self._links()
        for node_id in self._num_sent:
            if node_id in links:
                try:
                    links[node_id].send(Release(self._key))
                except LinkError:
                    logger.debug("link ended before release: peer=%s", node_id)

    def _ask(
        self,
        link: DrafterLink,
        node_id: str,
        plan: Plan,
        trunk: Sequence[int] = (),
        ahead: PackedTree | None = None,
    ) -> AskedDraft:
        asked = AskedDraft(node_id, plan, now(), trunk, ahead)
        self._awaited[asked] = None
        self._statistics.contention.begin(node_id, asked.asked_s)
        self._request(asked, link)
        return asked

    def _request(self, asked: AskedDraft, link: DrafterLink) -> None:
        """Send a request; its reply, or the end of the link, is handled by `_replied`."""
        asked.num_requests += 1
        asked.prefix_len = len(self._sequence) + len(asked.trunk)
        try:
            asked.reply = link.ask(self._message(asked))
        except LinkError:
            self._lose(asked)
        else:
            asked.reply.add_done_callback(partial(self._replied, asked, link))

    def _replied(self, asked: AskedDraft, link: DrafterLink, reply: asyncio.Future[Reply]) -> None:
        if asked.is_over:
            return
        try:
            self._handle(asked, link, reply.exception() or reply.result())
        except Exception as error:  # noqa: BLE001 -- raised in the session, when it takes the draft
            asked.error = error
            self._end(asked, None)

    def _handle(self, asked: AskedDraft, link: DrafterLink, reply: Reply | BaseException) -> None:
        match reply:
            case Draft() as draft:
                self._complete(asked, draft)
            case OutOfStep() as answer:
                self._fall_back(asked, link, answer.have)
            case TimeoutError():
                self._end(asked, None)
                self._note_late(asked)
            case _:
                self._lose(asked)

    def _fall_back(self, asked: AskedDraft, link: DrafterLink, have: int) -> None:
        """The drafter has no more than `have` tokens in common: send the rest, once."""
        self._num_sent[asked.node_id] = min(have, self._num_sent.get(asked.node_id, 0))
        if asked.num_requests == MAX_REQUESTS_OF_A_DRAFT:
            self._complete(asked, None)
            return
        self._metrics.trace.drafted(asked.node_id, asked.asked_s, None)
        self._statistics.observe_retry()
        self._request(asked, link)

    def _complete(self, asked: AskedDraft, draft: Draft | None) -> None:
        """A drafter answered; its draft is None if it cannot follow the sequence."""
        elapsed_s, plan, node_id = now() - asked.asked_s, asked.plan, asked.node_id
        compute_s = draft.compute_us * 1e-6 if draft else 0.0
        num_steps = draft.num_steps if draft and draft.num_steps >= 0 else None
        asked.tree = tree = self._checked(node_id, asked.prefix_len, draft)
        if node_id not in self._has_drafted:
            # Its time was mostly that of reading the text, which says nothing of a step.
            num_steps = 0
        if draft is not None:
            self._note_drafter(node_id)
        if not asked.is_ahead:
            num_tokens = min(plan.gamma, len(tree))
            is_disturbed = plan.is_probe or len(plan.drafters) > 1
            self._statistics.observe_answer(
                node_id, elapsed_s, compute_s, num_tokens, num_steps, is_disturbed=is_disturbed
            )
        elif draft is not None:
            num_steps = num_steps or plan.gamma
            self._statistics.observe_ahead(node_id, elapsed_s, compute_s, num_steps)
        self._end(asked, draft)

    def _lose(self, asked: AskedDraft) -> None:
        """The drafter's link has ended."""
        self._num_sent.pop(asked.node_id, None)
        self._has_drafted.pop(asked.node_id, None)
        self._end(asked, None)

    def _give_up(self, asked: AskedDraft) -> None:
        self._end(asked, None)
        if asked.reply is not None:
            asked.reply.cancel()

    def _note_late(self, asked: AskedDraft) -> None:
        self._metrics.late[asked.node_id] += 1
        self._statistics.observe_late(asked.node_id, asked.plan.deadline_s)

    def _end(self, asked: AskedDraft, draft: Draft | None) -> None:
        asked.is_over = True
        if asked in self._awaited:
            del self._awaited[asked]
            self._statistics.contention.end(asked.node_id, now())
        self._metrics.trace.drafted(asked.node_id, asked.asked_s, draft)
        self.wait.ended()

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

    def _message(self, asked: AskedDraft) -> DraftRequest:
        num_sent = self._num_sent.get(asked.node_id, 0)
        self._num_sent[asked.node_id] = len(self._sequence)
        new_tokens = [*self._sequence.tokens[num_sent:], *asked.trunk]
        plan, (tokens, parents, confidences) = asked.plan, asked.ahead or (b"", b"", b"")
        return DraftRequest(
            request_id=self._key,
            round=self._round,
            prefix_len=asked.prefix_len,
            prefix_digest=prefix_digest(asked.trunk, self._sequence.digest()),
            new_tokens=pack_tokens(new_tokens),
            num_tokens=plan.gamma,
            width=plan.width,
            coupling=self._noise,
            is_ahead=asked.is_ahead,
            tree_tokens=tokens,
            tree_parents=parents,
            tree_confidences=confidences,
            outcome_shares=plan.shares.get(asked.node_id, b""),
            is_probe=plan.is_probe,
            within_us=round(plan.within_s * 1e6),
        )
