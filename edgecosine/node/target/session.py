"""The life of one request on the target node, top to bottom.

Plan, draft, fuse, verify, commit, until the target stops or the asker leaves. While the target
verifies, drafters guess what comes after any outcome, so that the next tree is mostly there with
the verdict. The verdict of a round reaches the drafters inside the next round's request; whoever is
late is not in the tree.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator

from edgecosine.balance.plan import Plan
from edgecosine.balance.planner import Planner
from edgecosine.engine.base import VerificationResult, VerifyWork
from edgecosine.engine.tokenizer import MAX_CONTEXT, TextCodec
from edgecosine.errors import root_of
from edgecosine.fusion.proposal import Proposal
from edgecosine.node.runtime.clock import now
from edgecosine.node.target.draft_client import DraftClient, DrafterLinks, DraftTask, answers
from edgecosine.node.target.output_processor import OutputProcessor
from edgecosine.node.target.request_metrics import RequestMetrics
from edgecosine.node.target.round_trace import RoundTrace
from edgecosine.node.target.stepwise_drafts import gather_by_steps
from edgecosine.node.target.verifier import Verifier
from edgecosine.protocol.api.request import (
    Answer,
    Committed,
    Delta,
    Logprobs,
    Progress,
    Request,
    Sampling,
    Started,
)
from edgecosine.protocol.wire.messages import SharedNoise
from edgecosine.protocol.wire.prefix import Prefix
from edgecosine.protocol.wire.tree import EMPTY_TREE, TokenTree

logger = logging.getLogger(__name__)

FIRST_GRACE_S = 0.01
"""How long the first drafts may take after the target has read the prompt."""

TELL_EVERY_S = 0.02
"""Tokens and text of rounds that end sooner after the last ones that were told go with the next
ones: no reader sees the difference, and a message and a record of the journal cost the target as
much as some rows of a pass."""


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
    ) -> None:
        self._request, self._model = request, model
        self._verifier, self._planner = verifier, planner
        self._num_prompt = len(prompt)
        self._sequence = Prefix([*prompt, *request.said.tokens])
        self._num_told = len(request.said.tokens)
        """Tokens of the answer that were yielded."""
        self._committing = 0.0
        """When the last round's verdict was there, and nobody drafted any more."""
        self._logprobs: list[Logprobs] = [*request.said.logprobs]
        """Of the answer's tokens, where the request asks for them."""
        self._transcript = OutputProcessor(request, codec, prompt[-MAX_CONTEXT:])
        self._metrics = RequestMetrics(trace=RoundTrace(is_on=request.trace))
        self._draft_client = DraftClient(
            key=request.key,
            sequence=self._sequence,
            coupling=coupling_of(request.sampling),
            num_vocabulary=codec.num_tokens,
            links=drafters,
            planner=planner,
            metrics=self._metrics,
        )
        self._state = planner.open(
            request.policy, is_greedy=request.sampling.is_greedy, num_prompt=len(prompt)
        )

    def __repr__(self) -> str:
        return f"<Session {self._request.key} [{len(self._sequence)} tokens]>"

    async def run(self) -> AsyncGenerator[Progress, None]:
        """Yield `Started`, the deltas as they are certain, and the `Answer` last.

        What was said in a former life is shown again, from the first character on. Tokens do not
        wait for text that is held back.
        """
        index, told_at = 0, 0.0
        with contextlib.ExitStack() as ending:
            ending.callback(self._draft_client.release)
            ending.callback(self._verifier.release, self._request.key)
            ending.callback(self._planner.close, self._state)
            yield Started()
            started = prefilled = now()
            ready: list[Proposal] | None = None
            self._planner.observe_text(self._state, self._sequence.tokens)
            unsent = self._show()
            if unsent:
                yield Delta(index, unsent)
                index, unsent, told_at = index + 1, "", now()
            while self._transcript.finish_reason is None:
                if ready is None:
                    ready = await self._prefill()
                    prefilled = now()
                else:
                    ready = await self._play_round(ready)
                unsent += self._show()
                is_over = self._transcript.finish_reason is not None
                moment = now()
                if not is_over and moment - told_at < TELL_EVERY_S:
                    continue
                told_at = moment
                if unsent:
                    yield Delta(index, unsent, committed=self._untold())
                    index, unsent = index + 1, ""
                else:
                    yield self._untold()
            self._metrics.prefill_s = prefilled - started
            self._metrics.decode_s = now() - prefilled
            yield self._answer()

    def _show(self) -> str:
        """The text that is certain now."""
        seen = len(self._transcript.tokens)
        tokens = self._sequence.tokens[self._num_prompt + seen :]
        return self._transcript.push(tokens, self._logprobs[seen:])

    def _untold(self) -> Committed:
        """The answer's tokens since the last ones that were told."""
        told = self._num_told
        tokens = tuple(self._sequence.tokens[self._num_prompt + told :])
        self._num_told += len(tokens)
        return Committed(tokens, tuple(self._logprobs[told:]))

    async def _prefill(self) -> list[Proposal]:
        """Feed the prompt and draw the first token, while drafters read the prompt and go on."""
        linked, room = self._draft_client.linked, self._transcript.room
        plan = self._planner.first_plan(self._state, linked, room)
        verdict, _, said = await self._verify_beside(EMPTY_TREE, Plan(), plan, FIRST_GRACE_S)
        return self._commit(verdict, EMPTY_TREE, said, [])

    async def _play_round(self, ready: list[Proposal]) -> list[Proposal]:
        """Draft, unless enough is there already; fuse, verify, commit, learn. Returns what is there
        for the next round."""
        self._draft_client.begin_round()
        self._metrics.trace.begin()
        started = now()
        linked, room = self._draft_client.linked, self._transcript.room
        plan = self._draft_client.explain(self._planner.plan(self._state, linked, room))
        self._metrics.trace.plan(plan.deadline_s)
        is_ready = self._planner.is_enough(self._state, ready, plan)
        self._metrics.count_plan(plan, is_ready=is_ready)
        asked = now()
        drafts = ready if is_ready else await self._draft(plan, ready)
        drafted = now()
        waited_s = drafted - started
        tree = self._planner.fuse(self._state, drafts, room - 1, waited_s)
        ahead = self._planner.ahead(self._state, linked, plan, tree)
        trial = self._planner.trial(self._state, linked, plan)
        busy_s = (now() - drafted) + (asked - self._committing)
        self._planner.observe_bookkeeping(busy_s, is_plain=not plan.drafters)
        verdict, foreseen, tried = await self._verify_beside(tree, ahead, trial)
        drafters = [draft.node_id for draft in drafts]
        self._metrics.count_round(tree, drafters, verdict)
        logger.debug(
            "round: request=%s drafters=%s nodes=%d accepted=%d plan=%s",
            self._request.key, drafters, len(tree), len(verdict.path), plan.reason,
        )  # fmt: skip
        if plan.drafters:
            self._planner.observe_round(
                self._state, plan, was_ready=is_ready, num_accepted=len(verdict.path)
            )
        return self._commit(verdict, tree, [*drafts, *tried], foreseen)

    async def _draft(self, plan: Plan, ready: list[Proposal]) -> list[Proposal]:
        """Fresh drafts, and what is there of those who did not answer."""
        self._verifier.expect(self._request.key, plan.draft_s, 1 + plan.gamma)
        asked = now()
        if plan.interval:
            drafts = await gather_by_steps(self._draft_client, self._planner, self._state, plan)
        else:
            drafts = await self._draft_client.gather(plan)
        self._planner.observe_wait(plan, now() - asked)
        answered = {draft.node_id for draft in drafts}
        return [*drafts, *(draft for draft in ready if draft.node_id not in answered)]

    async def _verify_beside(
        self, tree: TokenTree, ahead: Plan, trial: Plan, grace_s: float = 0.0
    ) -> tuple[VerificationResult, list[Proposal], list[Proposal]]:
        """The target's verdict, and what drafters said meanwhile to the plans `ahead` and `trial`;
        to the latter until `grace_s` after the verdict."""
        self._metrics.trace.submit()
        try:
            async with asyncio.TaskGroup() as group:
                asks = self._draft_client.start(group, ahead, ahead=tree)
                tries = self._draft_client.start(group, trial)
                verdict = await self._verify(tree)
                patience_s = self._planner.patience_s(ahead)
                self._verifier.expect(self._request.key, patience_s, 1 + len(tree))
                await _settle(asks, patience_s)
                await _settle(tries, grace_s)
                for ask in (*asks, *tries):
                    ask.cancel()
        except BaseExceptionGroup as failures:
            raise root_of(failures) from None
        self._metrics.trace.end(len(tree), len(verdict.path), self._metrics.plan)
        self._committing = now()
        return verdict, answers(asks), answers(tries)

    async def _verify(self, tree: TokenTree) -> VerificationResult:
        work = VerifyWork(
            key=self._request.key,
            tokens=tuple(self._sequence.tokens),
            num_prompt=self._num_prompt,
            tree=tree,
            sampling=self._request.sampling,
            top_logprobs=self._request.top_logprobs,
        )
        verdict = await self._verifier.verify(work)
        self._metrics.trace.verified(self._verifier.last_pass_s)
        return verdict

    def _commit(
        self,
        verdict: VerificationResult,
        tree: TokenTree,
        proposals: list[Proposal],
        foreseen: list[Proposal],
    ) -> list[Proposal]:
        """Take the verdict over and learn from it what the proposals were worth; returns what they,
        and those that foresaw it, say beyond it."""
        self._sequence.extend([*(tree.tokens[node] for node in verdict.path), verdict.bonus])
        self._logprobs.extend(verdict.logprobs)
        committed = self._sequence.tokens
        self._planner.observe_truth(self._state, proposals, committed)
        self._planner.observe_text(self._state, committed)
        if not self._state.policy.width:
            foreseen = [proposal.chain() for proposal in foreseen]
        newest = {proposal.node_id: proposal for proposal in (*proposals, *foreseen)}
        left = [proposal.after(committed) for proposal in newest.values()]
        return [proposal for proposal in left if proposal is not None]

    def _answer(self) -> Answer:
        return Answer(
            choices=(self._transcript.choice(),),
            num_prompt_tokens=self._num_prompt,
            seed=self._request.sampling.seed,
            model=self._model,
            metrics=self._metrics.metrics(),
        )


async def _settle(asks: list[DraftTask], patience_s: float) -> None:
    """Wait a little for answers that may be on their way, unless there is one already."""
    if asks and patience_s > 0.0 and not any(ask.done() for ask in asks):
        await asyncio.wait(asks, timeout=patience_s)


def coupling_of(sampling: Sampling) -> SharedNoise:
    """What drafters must know of it."""
    if sampling.is_greedy:
        return SharedNoise()
    return SharedNoise(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=sampling.seed.to_bytes(8, "little"),
    )
