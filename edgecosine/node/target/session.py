"""One request on the target node: plan, draft, fuse, verify, commit, until the answer ends or the
client leaves.

While the target verifies a tree, drafters draft ahead after all of its acceptance endpoints, so
that most of the next tree is there with the verification result. The result of a round reaches the
drafters inside the next round's draft request. Drafts that are late are not in the tree.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator, Sequence

from edgecosine.balance.local_draft import SOURCES, LocalDraft
from edgecosine.balance.plan import MAX_NODES, Plan
from edgecosine.balance.planner import Planner
from edgecosine.balance.round import Round
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
from edgecosine.node.target.request_metrics import RequestMetrics
from edgecosine.node.target.round_trace import RoundTrace
from edgecosine.node.target.shared_noise import noise_of
from edgecosine.node.target.stepwise_drafts import gather_by_steps
from edgecosine.node.target.verifier import Verifier
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Answer, Progress, Started
from edgecosine.protocol.wire.prefix import Prefix
from edgecosine.protocol.wire.tree import EMPTY_TREE, TokenTree

logger = logging.getLogger(__name__)

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
        self._sequence = Prefix([*prompt, *request.said.tokens])
        self._round_ended_s = 0.0
        """When the last round's verification result and its drafts ahead had arrived."""
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
        self._compared = ComparedDrafters(self._draft_client, self._statistics, self._state)

    def __repr__(self) -> str:
        return f"<Session {self._request.key} [{len(self._sequence)} tokens]>"

    async def run(self) -> AsyncGenerator[Progress, None]:
        """Yield `Started`, then deltas of final text and committed tokens, and the `Answer` last.

        A resumed request yields its text again from the first character on. Tokens are yielded
        without the text that a stop string may still cut.
        """
        text, yielded_s = self._text, 0.0
        with contextlib.ExitStack() as ending:
            ending.callback(self._draft_client.release)
            ending.callback(self._verifier.release, self._request.key)
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
                else:
                    ahead = await self._run_round(ahead)
                moment = now()
                if text.is_over or moment - yielded_s >= YIELD_EVERY_S:
                    yielded_s = moment
                    for step in text.take():
                        yield step
            self._metrics.prefill_s = prefilled - started
            self._metrics.decode_s = now() - prefilled
            yield self._answer()

    async def _prefill(self) -> list[DrafterTree]:
        """Read the prompt and draw the first token, while drafters read the prompt and draft."""
        state, left = self._state, list[DrafterTree]()
        if self._planner.is_plain(state):
            result = await self._decode()
        else:
            self._statistics.acceptance.observe_text(state, self._sequence.tokens)
            probe = self._planner.first_plan(state, self._compared.choose(), self._text.room)
            result, _, probed = await self._verify_beside(EMPTY_TREE, Plan(), probe, FIRST_GRACE_S)
            left = self._commit(result, EMPTY_TREE, probed, [])
        self._text.score(result.prompt_logprobs)
        return left

    async def _run_round(self, ahead: list[DrafterTree]) -> list[DrafterTree]:
        """Draft, unless the drafts made ahead suffice; fuse, verify, commit, learn. Returns the
        drafts made ahead for the next round."""
        self._draft_client.begin_round()
        self._metrics.trace.begin()
        local = EMPTY_TREE
        if self._constraint is None:
            local = self._local.draft(self._sequence.tokens, self._text.room - 1)
            if not self._draft_client.has_probed:
                is_plain = not ahead and self._planner.is_plain(self._state)
                if is_plain or self._local.is_promising:
                    return await self._run_plain_round(local)
        started, room, client = now(), self._text.room, self._draft_client
        asked = client.ready if self._state.policy.is_adaptive else client.linked
        plan = client.explain(self._planner.plan(self._state, asked, room))
        self._metrics.trace.plan(plan.deadline_s)
        current = self._planner.start_round(self._state, plan, ahead)
        self._metrics.count_plan(plan, is_ready=current.is_ready)
        planned = now()
        if not current.is_ready:
            current = current.with_drafts(await self._draft(current))
        drafted = now()
        waited_s = drafted - started
        forced = self._forced(room - 1)
        tree = self._planner.fuse(self._state, current, room - 1 - len(forced), waited_s)
        drafters: Sequence[str] = [draft.node_id for draft in current.drafts]
        if not drafters and len(local):
            tree, drafters = local, SOURCES
        if self._constraint is not None:
            tree = self._constraint.cut(self._text.tokens, tree).with_trunk(forced)
        plan_ahead = self._planner.ahead(self._state, client.able(plan.drafters), plan, tree)
        probe = self._planner.probe(self._state, self._compared.choose(), plan, client.probes)
        is_quiet = not (plan.drafters or probe.drafters or client.probes)
        began_s, busy_s = self._round_ended_s, (now() - drafted) + (planned - self._round_ended_s)
        result, next_drafts, probed = await self._verify_beside(tree, plan_ahead, probe)
        self._note_bookkeeping(began_s, busy_s, waited_s, is_plain=not plan.drafters)
        self._note_round(began_s, 1 + len(result.path), is_quiet=is_quiet)
        self._metrics.count_round(tree, drafters, result)
        self._metrics.totals.count_times(
            plan=planned - started, draft=waited_s - (planned - started),
            verify=self._round_ended_s - drafted,
        )  # fmt: skip
        logger.debug(
            "round: request=%s drafters=%s nodes=%d accepted=%d plan=%s",
            self._request.key, drafters, len(tree), len(result.path), plan.reason,
        )  # fmt: skip
        if plan.drafters:
            self._statistics.observe_round(
                self._state,
                waited_s=waited_s,
                was_ready=current.is_ready and bool(current.drafts),
                num_accepted=len(result.path),
                round_s=self._round_ended_s - began_s,
            )
        return self._commit(result, tree, [*current.drafts, *probed], next_drafts, drafters)

    def _forced(self, room: int) -> tuple[int, ...]:
        """Tokens that the response format leaves no choice, at most `room`."""
        if self._constraint is None or not self._state.policy.proposes_forced:
            return ()
        return self._constraint.forced(self._text.tokens, room)

    async def _run_plain_round(self, tree: TokenTree) -> list[DrafterTree]:
        """A round without drafters, with a draft of the target's own, or without drafts."""
        began_s, busy_s = self._round_ended_s, now() - self._round_ended_s
        if not (self._metrics.plan and self._statistics.speculates(self._state)):
            why = self._statistics.why_plain(self._state.policy)
            self._metrics.plan = why if self._metrics.trace.is_on else ""
        submitted = now()
        result = await self._decode(tree)
        self._metrics.count_plain_round(tree, SOURCES, result, self._round_ended_s - submitted)
        self._note_bookkeeping(began_s, busy_s, 0.0, is_plain=True)
        is_quiet = not self._draft_client.probes
        self._note_round(began_s, 1 + len(result.path), is_quiet=is_quiet)
        return []

    async def _decode(self, tree: TokenTree = EMPTY_TREE) -> VerificationResult:
        """Commit the target's own next token, behind what it accepts of its own draft: without
        drafters there is nothing else to await, and nothing to learn of them."""
        self._metrics.trace.submit()
        result = await self._verify(tree)
        self._metrics.trace.end(len(tree), len(result.path), self._metrics.plan)
        self._round_ended_s = now()
        self._append(result, tree, SOURCES)
        return result

    def _note_bookkeeping(
        self, began_s: float, busy_s: float, waited_s: float, *, is_plain: bool
    ) -> None:
        """Learn the time of a round outside of its pass and its wait for drafts."""
        if self._statistics.num_active == 1:
            round_s = self._round_ended_s - began_s
            busy_s = max(busy_s, round_s - waited_s - self._verifier.last_pass_s)
        self._statistics.observe_bookkeeping(busy_s, is_plain=is_plain)

    def _note_round(self, began_s: float, num_tokens: int, *, is_quiet: bool) -> None:
        """Learn what a round took from the end of the former one."""
        round_s = self._round_ended_s - began_s
        self._statistics.observe_lone_round(self._state, num_tokens, round_s, is_quiet=is_quiet)

    async def _draft(self, current: Round) -> list[DrafterTree]:
        """Fresh drafts, and those made ahead by drafters that did not answer."""
        plan = current.plan
        self._verifier.expect(self._request.key, plan.draft_s, 1 + plan.gamma)
        asked = now()
        if plan.interval:
            acceptance = self._statistics.acceptance
            drafts = await gather_by_steps(self._draft_client, acceptance, self._state, plan)
        else:
            drafts = await self._draft_client.gather(plan)
        self._statistics.observe_wait(plan, now() - asked)
        answered = {draft.node_id for draft in drafts}
        return [*drafts, *(draft for draft in current.drafts if draft.node_id not in answered)]

    async def _verify_beside(
        self, tree: TokenTree, plan_ahead: Plan, probe: Plan, grace_s: float = 0.0
    ) -> tuple[VerificationResult, list[DrafterTree], list[DrafterTree]]:
        """The verification result, the drafts that arrived meanwhile for `plan_ahead`, and those of
        probes that ended until `grace_s` after the result."""
        self._metrics.trace.submit()
        client = self._draft_client
        drafts = client.start(plan_ahead, ahead=tree)
        client.probe(probe)
        result = await self._verify(tree)
        patience_s = self._statistics.patience_s(plan_ahead.drafters)
        self._verifier.expect(self._request.key, patience_s, 1 + len(tree))
        await client.any_of(drafts, patience_s)
        await client.any_of(client.probes.values(), grace_s)
        ready, probed = client.take(drafts), client.take_probes()
        self._metrics.trace.end(len(tree), len(result.path), self._metrics.plan)
        self._round_ended_s = now()
        return result, ready, probed

    async def _verify(self, tree: TokenTree) -> VerificationResult:
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
        result = await self._verifier.verify(work)
        self._metrics.trace.verified(self._verifier.last_pass_s)
        return result

    def _commit(
        self,
        result: VerificationResult,
        tree: TokenTree,
        drafts: list[DrafterTree],
        ahead: list[DrafterTree],
        proposers: Sequence[str] = (),
    ) -> list[DrafterTree]:
        """Append the accepted tokens and learn from them; returns what is left of all drafts after
        the longer sequence. Bit i of a node's proposers is `proposers[i]`."""
        self._append(result, tree, proposers)
        committed = self._sequence.tokens
        self._planner.observe_truth(self._state, drafts, committed)
        self._statistics.acceptance.observe_text(self._state, committed)
        if not self._state.policy.width:
            ahead = [draft.chain() for draft in ahead]
        newest = {draft.node_id: draft for draft in (*drafts, *ahead)}
        left = [draft.after(committed, MAX_NODES) for draft in newest.values()]
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
        self._text.add(tokens, result.logprobs, _guessed_by(result.path, tree, proposers))

    def _answer(self) -> Answer:
        self._metrics.plan = self._metrics.plan or self._statistics.why_plain(self._state.policy)
        return Answer(
            choices=(self._text.choice(),),
            num_prompt_tokens=self._num_prompt,
            seed=self._request.sampling.seed,
            model=self._model,
            metrics=self._metrics.metrics(),
        )


def _guessed_by(path: Sequence[int], tree: TokenTree, proposers: Sequence[str]) -> Iterator[str]:
    """The drafters of each node of an accepted path, and of the target's own token behind it."""
    for node in path:
        yield "+".join(
            name for bit, name in enumerate(proposers) if tree.proposers[node] >> bit & 1
        )
    yield ""
