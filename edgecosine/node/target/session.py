"""One request on the target node: plan, draft, fuse, verify, commit, until the answer ends or the
client leaves.

While the target verifies a tree, drafters draft ahead after all of its acceptance endpoints, so
that most of the next tree is there with the verification result. The result of a round reaches the
drafters inside the next round's draft request. Drafts that are late are not in the tree.

Text is yielded while the next pass runs. Of a request that is alone only what the next tree depends
on stands between two passes: its last round is learned from, and the next one planned, during one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable, Sequence

from edgecosine.balance.local_draft import SOURCES, LocalDraft
from edgecosine.balance.plan import MAX_NODES
from edgecosine.balance.planner import Planner
from edgecosine.engine.base import Constraint, VerificationResult, VerifyWork
from edgecosine.engine.dialect import PLAIN, Dialect
from edgecosine.engine.tokenizer import TextCodec
from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.metrics.measurements import Measurements
from edgecosine.node.runtime.clock import now
from edgecosine.node.target.answer_text import AnswerText
from edgecosine.node.target.compared_drafters import ComparedDrafters
from edgecosine.node.target.draft_client import DraftClient
from edgecosine.node.target.drafter_link import DrafterLinks
from edgecosine.node.target.drafting import Drafting
from edgecosine.node.target.request_metrics import RequestMetrics
from edgecosine.node.target.round_learning import RoundLearning
from edgecosine.node.target.round_trace import RoundTrace
from edgecosine.node.target.session_round import BegunRound, EndedRound, guessed_by
from edgecosine.node.target.shared_noise import noise_of
from edgecosine.node.target.verifier import Verifier
from edgecosine.protocol.api.request import Committed, Request
from edgecosine.protocol.api.result import Answer, Delta, Progress, Started
from edgecosine.protocol.wire.prefix import Prefix
from edgecosine.protocol.wire.tree import EMPTY_TREE, TokenTree

FIRST_GRACE_S = 0.01
"""Longest wait for the first drafts after the prefill."""

YIELD_EVERY_S = 0.02
"""Shortest time between two yields: tokens and text of quicker rounds go with later ones. A reader
sees no difference, while a message and a journal record cost as much as some rows of a pass."""


class Session:
    """One request. `run` is called once."""

    def __init__(
        self,
        *,
        request: Request,
        prompt: list[int],
        model: str,
        codec: TextCodec,
        verifier: Verifier,
        planner: Planner,
        drafters: DrafterLinks,
        measurements: Measurements,
        constraint: Constraint | None = None,
        dialect: Dialect = PLAIN,
        in_reasoning: bool = False,
    ) -> None:
        """`constraint` restricts the answer; `in_reasoning`: the prompt opened the reasoning."""
        self._request, self._model, self._constraint = request, model, constraint
        self._verifier, self._statistics = verifier, planner.statistics
        self._num_prompt = len(prompt)
        self._sequence = Prefix([*prompt, *request.resumed.tokens])
        self._pass: asyncio.Future[VerificationResult] | None = None
        self._yielded_s = self._round_ended_s = 0.0
        """When text was yielded, and when a round's result and its drafts ahead had arrived."""
        self._text = AnswerText(request, codec, prompt, dialect, in_reasoning=in_reasoning)
        self._metrics = RequestMetrics(trace=RoundTrace(is_on=request.trace), totals=measurements)
        self._draft_client = DraftClient(
            key=request.key,
            sequence=self._sequence,
            noise=noise_of(request.sampling),
            num_vocabulary=codec.num_tokens,
            links=drafters,
            statistics=self._statistics,
            metrics=self._metrics,
        )
        self._state = self._statistics.open(
            request.policy, is_greedy=request.sampling.is_greedy, num_prompt=len(prompt)
        )
        self._planner = planner.of(self._state)
        self._state.first_length = len(self._sequence)
        self._local = LocalDraft(self._state, self._statistics)
        self._learning = RoundLearning(
            request.key, self._state, self._statistics, self._planner, self._metrics, self._sequence
        )
        self._compared = ComparedDrafters(self._draft_client, self._statistics, self._state)
        self._drafting = Drafting(
            request.key, self._state, self._planner, self._statistics, self._draft_client, verifier
        )

    def __repr__(self) -> str:
        return f"<Session {self._request.key} [{len(self._sequence)} tokens]>"

    async def run(self) -> AsyncGenerator[Progress, None]:
        """Yield `Started`, then deltas of final text and committed tokens, and the `Answer` last.

        A resumed request yields its text again from the first character on. Tokens are yielded
        without the text that a stop string may still cut.
        """
        text = self._text
        with contextlib.ExitStack() as ending:
            ending.callback(self._draft_client.release)
            ending.callback(self._verifier.release, self._request.key)
            ending.callback(self._leave_pass)
            ending.callback(self._statistics.close, self._state)
            yield Started(self._num_prompt)
            started = prefilled = now()
            ahead: list[DrafterTree] | None = None
            for delta in text.open():
                yield delta
            while not text.is_over:
                if ahead is None:
                    ahead = await self._prefill()
                    prefilled = now()
                    for step in self._due():
                        yield step
                else:
                    begun = await self._begin_round(ahead)
                    for step in self._due():
                        yield step
                    ahead = await self._end_round(begun)
            if text.has_more:
                for step in text.take():
                    yield step
            self._learning.catch_up()
            self._metrics.prefill_s = prefilled - started
            self._metrics.decode_s = now() - prefilled
            yield self._answer()

    async def _prefill(self) -> list[DrafterTree]:
        """Read the prompt and draw the first token, while drafters read the prompt and draft."""
        state, left, client = self._state, list[DrafterTree](), self._draft_client
        is_plain = self._planner.is_plain(state)
        if not is_plain:
            self._statistics.acceptance.observe_text(state, self._sequence.tokens)
        verification = self._submit(EMPTY_TREE)
        if not is_plain:
            client.probe(self._planner.first_plan(state, self._compared.choose(), self._text.room))
        result = await verification
        self._metrics.trace.verified(self._verifier.last_pass_s)
        if is_plain:
            self._append(result, EMPTY_TREE)
        else:
            _, probed = await self._drafting.take(EMPTY_TREE, [], 0.0, FIRST_GRACE_S)
            left = self._commit(result, EMPTY_TREE, probed, [])
            self._learning.observe_truth(probed)
        self._metrics.trace.end(0, 0, self._metrics.plan)
        self._round_ended_s = now()
        self._text.score(result.prompt_logprobs)
        return left

    def _due(self) -> Sequence[Delta | Committed]:
        """What is to be yielded now."""
        moment = now()
        if not self._text.has_more or moment - self._yielded_s < YIELD_EVERY_S:
            return ()
        self._yielded_s = moment
        return self._text.take()

    async def _begin_round(self, ahead: list[DrafterTree]) -> BegunRound:
        """Draft, unless the drafts made ahead suffice; fuse and submit. Then a session that is
        alone learns from its last round and plans the next one.

        Each wake-up beside a pass finds cold caches, so it does so when a draft ahead has come;
        with a single core, at once, since nothing would be gained."""
        client, room = self._draft_client, self._text.room
        client.begin_round()
        self._metrics.trace.begin()
        if self._drafting.next_plan is None:
            self._learning.catch_up()
        local = EMPTY_TREE
        if self._constraint is None:
            local = self._local.draft(self._sequence.tokens, room - 1)
            if not client.has_probed:
                has_drafts = ahead or self._drafting.next_plan is not None
                if not has_drafts and self._planner.is_plain(self._state):
                    return await self._begin_plain_round(local)
        started = now()
        plan = self._drafting.take_plan(room)
        if plan is None:
            self._learning.catch_up()
            plan = self._drafting.make_plan(room)
        self._metrics.trace.plan(plan.deadline_s)
        current = self._planner.start_round(self._state, plan, ahead)
        self._metrics.count_plan(plan, is_ready=current.is_ready)
        planned = now()
        if not current.is_ready:
            current = current.with_drafts(await self._drafting.gather(current))
        drafted = now()
        forced = self._forced(room - 1)
        tree = self._planner.fuse(self._state, current, room - 1 - len(forced), drafted - started)
        drafters = [draft.node_id for draft in current.drafts]
        if len(local):
            drafters += SOURCES
        if self._constraint is not None:
            tree = self._constraint.cut(self._text.tokens, tree).with_trunk(forced)
        began_s, busy_s = self._round_ended_s, (now() - drafted) + (planned - self._round_ended_s)
        verification = self._submit(tree)
        is_alone = self._statistics.num_active == 1
        # The pass starts before drafts ahead are requested.
        await (self._verifier.begun(verification) if is_alone else asyncio.sleep(0))
        plan_ahead = self._planner.ahead(self._state, client.able(plan.drafters), plan, tree)
        probe = self._planner.probe(self._state, self._compared.choose(), plan, client.probes)
        begun = BegunRound(
            tree=tree, verification=verification, drafters=drafters, current=current,
            began_s=began_s, busy_s=busy_s,
            plan_s=planned - started, waited_s=drafted - planned, submitted_s=drafted,
            is_quiet=not (plan.drafters or probe.drafters or client.probes),
            patience_s=self._statistics.patience_s(plan_ahead.drafters),
            ahead=client.start(plan_ahead, ahead=tree),
        )  # fmt: skip
        client.probe(probe)
        if plan.drafters and is_alone and self._state.policy.baseline is None:
            if self._verifier.is_beside_loop:
                await client.wait.any_or(verification, begun.ahead)
            if not verification.done():
                self._learning.catch_up()
                self._drafting.next_plan = self._drafting.make_plan(room - 1)
        return begun

    async def _end_round(self, begun: BegunRound) -> list[DrafterTree]:
        """Commit a round; returns the drafts made ahead for the next one."""
        result = await begun.verification
        pass_s = self._verifier.last_pass_s
        self._metrics.trace.verified(pass_s)
        if begun.current is None:
            self._end_plain_round(begun, result, pass_s)
            return []
        ahead, probed = await self._drafting.take(begun.tree, begun.ahead, begun.patience_s)
        self._metrics.trace.end(len(begun.tree), len(result.path), self._metrics.plan)
        self._round_ended_s = now()
        self._learning.catch_up()
        drafts = (*begun.current.drafts, *probed)
        left = self._commit(result, begun.tree, drafts, ahead, begun.drafters)
        missed = {draft.node_id for draft in ahead} - {draft.node_id for draft in left}
        self._learning.add(EndedRound(begun, result, probed, self._round_ended_s, pass_s, missed))
        return left

    def _leave_pass(self) -> None:
        """Take a tree back that is not awaited any more."""
        verification = self._pass
        if verification is not None and not verification.cancel() and not verification.cancelled():
            verification.exception()  # the session ends for another reason

    def _forced(self, room: int) -> tuple[int, ...]:
        """Tokens that the response format leaves no choice, at most `room`."""
        if self._constraint is None or not self._state.policy.proposes_forced:
            return ()
        return self._constraint.forced(self._text.tokens, room)

    async def _begin_plain_round(self, tree: TokenTree) -> BegunRound:
        """A round without drafters, with a draft of the target's own, or without drafts."""
        began_s, submitted_s = self._round_ended_s, now()
        self._drafting.next_plan = None
        self._local.note_verified()
        if not (self._metrics.plan and self._statistics.speculates(self._state)):
            why = self._statistics.why_plain(self._state.policy)
            self._metrics.plan = why if self._metrics.trace.is_on else ""
        verification = self._submit(tree)
        if self._statistics.num_active == 1:
            await self._verifier.begun(verification)
        return BegunRound(
            tree=tree, verification=verification, drafters=SOURCES,
            began_s=began_s, busy_s=submitted_s - began_s,
            submitted_s=submitted_s, is_quiet=not self._draft_client.probes,
        )  # fmt: skip

    def _end_plain_round(
        self, begun: BegunRound, result: VerificationResult, pass_s: float
    ) -> None:
        """Commit the target's own next token, behind what it accepts of its own draft: without
        drafters there is nothing else to await, and nothing to learn of them."""
        tree = begun.tree
        self._metrics.trace.end(len(tree), len(result.path), self._metrics.plan)
        self._round_ended_s = now()
        self._append(result, tree, SOURCES)
        verify_s = self._round_ended_s - begun.submitted_s
        self._metrics.count_plain_round(tree, SOURCES, result, verify_s)
        self._learning.note_times(EndedRound(begun, result, (), self._round_ended_s, pass_s))

    def _submit(self, tree: TokenTree) -> asyncio.Future[VerificationResult]:
        self._metrics.trace.submit()
        work = VerifyWork(
            key=self._request.key,
            tokens=tuple(self._sequence.tokens),
            num_prompt=self._num_prompt,
            tree=tree,
            sampling=self._request.sampling,
            top_logprobs=self._request.top_logprobs,
            scores_prompt=self._text.wants_scores,
            constraint=self._constraint,
            batching=self._planner.batching(self._state),
            reconstruction=self._state.policy.reconstruction,
        )
        self._pass = self._verifier.submit(work)
        return self._pass

    def _commit(
        self,
        result: VerificationResult,
        tree: TokenTree,
        drafts: Iterable[DrafterTree],
        ahead: Iterable[DrafterTree],
        proposers: Sequence[str] = (),
    ) -> list[DrafterTree]:
        """Append the accepted tokens; returns what is left of all drafts after the longer sequence.
        Bit i of a node's proposers is `proposers[i]`."""
        self._append(result, tree, proposers)
        if not self._state.policy.width:
            ahead = [draft.chain() for draft in ahead]
        newest = {draft.node_id: draft for draft in (*drafts, *ahead)}
        left = (draft.after(self._sequence.tokens, MAX_NODES) for draft in newest.values())
        return [draft for draft in left if draft is not None]

    def _append(
        self, result: VerificationResult, tree: TokenTree, proposers: Sequence[str] = ()
    ) -> None:
        if result.committee is not None:
            self._metrics.committee.count(result.committee, len(self._text.tokens))
        tokens = [*(tree.tokens[node] for node in result.path), result.bonus]
        self._sequence.extend(tokens)
        committed = self._sequence.tokens
        self._local.observe(committed)
        self._local.learn(committed, len(committed) - len(tokens))
        self._text.add(tokens, result.logprobs, guessed_by(result.path, tree, proposers))

    def _answer(self) -> Answer:
        self._metrics.plan = self._metrics.plan or self._statistics.why_plain(self._state.policy)
        return Answer(
            choices=(self._text.choice(),),
            num_prompt_tokens=self._num_prompt,
            seed=self._request.sampling.seed,
            model=self._model,
            metrics=self._metrics.metrics(),
        )
