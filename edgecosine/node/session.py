"""The life of one request on the target node, top to bottom.

Plan, draft, fuse, verify, commit, until the target stops or the asker leaves. The verdict of a
round reaches the drafters inside the next round's request; whoever is late is not in the tree.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping
from typing import Protocol

from edgecosine.balance.plan import Plan
from edgecosine.engine.base import Logprobs, Verdict, VerifyWork
from edgecosine.engine.text import TextCodec
from edgecosine.errors import ActorStopped, LinkError
from edgecosine.node.balancer import Balancer, Proposal
from edgecosine.node.tally import Tally
from edgecosine.node.transcript import Transcript
from edgecosine.node.verifying import Verifying
from edgecosine.protocol.messages import (
    AnyMessage,
    Coupling,
    Draft,
    DraftRequest,
    OutOfStep,
    Release,
    pack_tokens,
    unpack_tokens,
)
from edgecosine.protocol.prefix import Prefix
from edgecosine.protocol.request import (
    Answer,
    Delta,
    Progress,
    Request,
    Sampling,
    Started,
)
from edgecosine.protocol.tree import EMPTY_TREE, TokenTree

logger = logging.getLogger(__name__)


class DrafterLink(Protocol):
    """What a session needs of a link."""

    async def ask(self, request: DraftRequest) -> Draft | OutOfStep:
        """Raises LinkLost when the link ends."""

    def send(self, message: AnyMessage) -> None:
        """Raises LinkLost when the link has ended."""


FIRST_GRACE_S = 0.01
"""How long the first drafts may take after the target has read the prompt."""

Ask = asyncio.Task[Proposal | None]

DrafterLinks = Callable[[], Mapping[str, DrafterLink]]
"""Gives the drafters that are linked now, by node id."""


class Session:
    """One request. `run` is called once."""

    def __init__(
        self,
        *,
        request: Request,
        prompt: list[int],
        model: str,
        codec: TextCodec,
        verifying: Verifying,
        balancer: Balancer,
        drafters: DrafterLinks,
    ) -> None:
        self._request, self._model = request, model
        self._verifying, self._balancer, self._drafters = verifying, balancer, drafters
        self._num_prompt, self._num_vocabulary = len(prompt), codec.num_tokens
        self._sequence = Prefix(prompt)
        self._logprobs: list[Logprobs] = []
        """Of the answer's tokens, where the request asks for them."""
        self._transcript = Transcript(request, codec)
        self._coupling = _coupling(request.sampling)
        self._state = balancer.open(request.policy)
        self._tally = Tally()
        self._held: dict[str, int] = {}
        """Tokens of the sequence that each drafter was told, by node id."""
        self._round = 0

    def __repr__(self) -> str:
        return f"<Session {self._request.key} [round {self._round}, {len(self._sequence)} tokens]>"

    async def run(self) -> AsyncGenerator[Progress, None]:
        """Yield `Started`, the deltas as they are certain, and the `Answer` last."""
        index = 0
        try:
            yield Started()
            started = time.perf_counter()
            proposals = await self._prefill()
            prefilled = time.perf_counter()
            while True:
                seen = len(self._transcript.tokens)
                piece = self._transcript.push(
                    self._sequence.tokens[self._num_prompt + seen :], self._logprobs[seen:]
                )
                if piece:
                    yield Delta(index, piece)
                    index += 1
                if self._transcript.finish_reason is not None:
                    break
                await self._play_round(proposals)
                proposals = []
            self._tally.prefill_s = prefilled - started
            self._tally.decode_s = time.perf_counter() - prefilled
            yield self._answer()
        finally:
            self._release()

    async def _prefill(self) -> list[Proposal]:
        """Feed the prompt and draw the first token, while drafters read the prompt and go on."""
        plan = self._balancer.first_plan(self._state, self._linked, self._transcript.room)
        verdict, proposals = await self._verify_beside(EMPTY_TREE, plan, FIRST_GRACE_S)
        self._commit(verdict)
        self._learn(proposals)
        laid_on = [draft.after(self._sequence.tokens) for draft in proposals]
        return [draft for draft in laid_on if draft is not None]

    async def _play_round(self, proposals: list[Proposal]) -> None:
        """Draft (unless drafts are there already), fuse, verify, commit, learn."""
        self._round += 1
        started = time.perf_counter()
        plan = self._balancer.plan(self._state, self._linked, self._transcript.room)
        self._tally.plan = plan.reason
        if not proposals:
            proposals = await self._gather(plan)
        waited_s = time.perf_counter() - started
        tree = self._balancer.fuse(self._state, proposals, self._transcript.room - 1, waited_s)
        trial = self._balancer.trial(self._state, self._linked, plan)
        verdict, tried = await self._verify_beside(tree, trial, 0.0)
        self._tally.count_round(tree, [p.node_id for p in proposals], verdict)
        self._commit(verdict, tree)
        self._learn([*proposals, *tried])

    @property
    def _linked(self) -> Collection[str]:
        """Drafters that are linked now, by node id."""
        return self._drafters().keys()

    async def _verify_beside(
        self, tree: TokenTree, plan: Plan, grace_s: float
    ) -> tuple[Verdict, list[Proposal]]:
        """The target's verdict, and what the plan's drafters said until `grace_s` after it."""
        try:
            async with asyncio.TaskGroup() as group:
                asks = self._start_asks(group, plan)
                verdict = await self._verify(tree)
                if asks and grace_s:
                    await asyncio.wait(asks, timeout=grace_s)
                for ask in asks:
                    ask.cancel()
        except* ActorStopped as stopped:
            raise stopped.exceptions[0] from None
        return verdict, _answers(ask for ask in asks if not ask.cancelled())

    async def _gather(self, plan: Plan) -> list[Proposal]:
        """The drafts of the plan's drafters that come before its deadline."""
        async with asyncio.TaskGroup() as group:
            asks = self._start_asks(group, plan)
        return _answers(asks)

    def _start_asks(self, group: asyncio.TaskGroup, plan: Plan) -> list[Ask]:
        links = self._drafters()
        chosen = [(node_id, links[node_id]) for node_id in plan.drafters if node_id in links]
        return [
            group.create_task(self._ask(node_id, link, plan), name=f"ask {node_id}")
            for node_id, link in chosen
        ]

    async def _ask(self, node_id: str, link: DrafterLink, plan: Plan) -> Proposal | None:
        """One drafter's draft, or None when it is late or lost."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(plan.deadline_s):
                draft = await self._draft_from(node_id, link, plan.gamma)
        except TimeoutError:
            self._tally.late[node_id] += 1
            self._balancer.observe_late(node_id, plan.deadline_s)
            return None
        except LinkError:
            self._held.pop(node_id, None)
            return None
        elapsed_s = time.perf_counter() - started
        proposal = self._proposal(node_id, draft)
        compute_s = draft.compute_us * 1e-6 if draft else 0.0
        self._balancer.observe_answer(
            node_id,
            elapsed_s,
            compute_s,
            len(proposal.tokens),
            is_shared=len(plan.drafters) > 1,
        )
        return proposal

    def _proposal(self, node_id: str, draft: Draft | None) -> Proposal:
        """What a drafter's answer says; one that makes no sense says nothing."""
        tokens = tuple(unpack_tokens(draft.tokens)) if draft else ()
        confidences = tuple(byte / 255 for byte in draft.confidences) if draft else ()
        if len(tokens) != len(confidences) or any(t >= self._num_vocabulary for t in tokens):
            logger.warning("draft refused: request=%s peer=%s", self._request.key, node_id)
            tokens, confidences = (), ()
        return Proposal(node_id, len(self._sequence), tokens, confidences)

    async def _draft_from(self, node_id: str, link: DrafterLink, gamma: int) -> Draft | None:
        """Ask once; a drafter that is out of step is told what it lacks and asked again."""
        for _ in range(2):
            reply = await link.ask(self._draft_request(node_id, gamma))
            if isinstance(reply, Draft):
                return reply
            self._held[node_id] = min(reply.have, self._held[node_id])
        return None

    def _draft_request(self, node_id: str, gamma: int) -> DraftRequest:
        held = self._held.get(node_id, 0)
        self._held[node_id] = len(self._sequence)
        return DraftRequest(
            request_id=self._request.key,
            round=self._round,
            prefix_len=len(self._sequence),
            prefix_digest=self._sequence.digest(),
            new_tokens=pack_tokens(self._sequence.tokens[held:]),
            num_tokens=gamma,
            coupling=self._coupling,
        )

    async def _verify(self, tree: TokenTree) -> Verdict:
        work = VerifyWork(
            key=self._request.key,
            tokens=tuple(self._sequence.tokens),
            num_prompt=self._num_prompt,
            tree=tree,
            sampling=self._request.sampling,
            top_logprobs=self._request.top_logprobs,
        )
        return await self._verifying.verify(work)

    def _commit(self, verdict: Verdict, tree: TokenTree = EMPTY_TREE) -> None:
        self._sequence.extend([*(tree.tokens[node] for node in verdict.path), verdict.bonus])
        self._logprobs.extend(verdict.logprobs)

    def _learn(self, proposals: list[Proposal]) -> None:
        for proposal in proposals:
            truth = tuple(self._sequence.tokens[proposal.prefix_len :])
            self._balancer.observe_truth(self._state, proposal, truth)

    def _release(self) -> None:
        self._balancer.close(self._state)
        self._verifying.release(self._request.key)
        links = self._drafters()
        for node_id in self._held:
            if node_id in links:
                try:
                    links[node_id].send(Release(self._request.key))
                except LinkError:
                    logger.debug("drafter gone before release peer=%s", node_id)

    def _answer(self) -> Answer:
        return Answer(
            choices=(self._transcript.choice(),),
            num_prompt_tokens=self._num_prompt,
            seed=self._request.sampling.seed,
            model=self._model,
            metrics=self._tally.metrics(),
        )


def _answers(asks: Iterable[Ask]) -> list[Proposal]:
    return [proposal for ask in asks if (proposal := ask.result()) is not None]


def _coupling(sampling: Sampling) -> Coupling:
    if sampling.is_greedy:
        return Coupling()
    return Coupling(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=sampling.seed.to_bytes(8, "little"),
    )
