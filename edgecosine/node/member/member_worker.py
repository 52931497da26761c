"""The actor around a member's engine: judges prefixes and trees for the coordinators of committees.

It updates each request's prefix from the target's messages. All requests that have arrived share a
forward pass; a request in prefill stays in the batch. A request that fails is answered as out of
step, which its coordinator repeats a few times.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from edgecosine.engine.base import (
    FailedWork,
    JudgeWork,
    MemberEngine,
    Outcome,
    Prefilling,
    RowLists,
    Wanted,
)
from edgecosine.errors import EngineError, LinkError
from edgecosine.log_throttle import LogThrottle
from edgecosine.node.runtime.engine_thread import EngineThread
from edgecosine.node.runtime.failures import cause_of
from edgecosine.node.runtime.held_prefixes import (
    MAX_REQUESTS,
    HeldPrefixes,
    key_of,
    round_robin,
)
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.messages import (
    MAX_PREFIX_TOKENS,
    AnyMessage,
    Judgement,
    JudgeRequest,
    OutOfStep,
    Release,
    Reveal,
    read_tree,
    unpack_tokens,
)
from edgecosine.protocol.wire.tree import EMPTY_TREE

logger = logging.getLogger(__name__)

Reply = Callable[[AnyMessage], None]
"""Sends an answer; raises LinkError if the link has ended."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: JudgeRequest
    work: JudgeWork
    reply: Reply


class MemberWorker:
    """Batches the judge requests of all links into forward passes."""

    def __init__(
        self, *, engine: MemberEngine, thread: EngineThread, max_batch: int, num_vocabulary: int
    ) -> None:
        self._engine, self._thread, self._max_batch = engine, thread, max_batch
        self._num_vocabulary = num_vocabulary
        self._prefixes = HeldPrefixes(num_vocabulary)
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._batch: dict[str, _Waiting] = {}
        self._reveals: deque[tuple[str, Reveal, Reply]] = deque()
        self._released: deque[str] = deque(maxlen=MAX_REQUESTS)
        self._arrived = asyncio.Event()
        self._became_idle = asyncio.Event()
        self._log_throttle = LogThrottle()
        self.num_judged = 0
        """Rows that were listed."""
        self.num_reveals = 0
        self.busy_s = 0.0

    def __repr__(self) -> str:
        return f"<MemberWorker [{len(self._waiting)} waiting, {len(self._prefixes)} requests]>"

    def on_request(
        self, message: JudgeRequest | Reveal | Release, reply: Reply, target: str = ""
    ) -> None:
        """Handle a message of `target`; the answer is passed to `reply`, at once or by `run`."""
        key = key_of(message.request_id, target)
        if isinstance(message, Release):
            self._drop(key)
        elif isinstance(message, Reveal):
            if len(self._reveals) >= MAX_REQUESTS:
                _send(reply, OutOfStep(message.request_id, message.round, 0))
                return
            self._reveals.append((key, message, reply))
            self._arrived.set()
        else:
            self._add(key, message, reply)

    def drop_all(self) -> None:
        """Drop all waiting requests, and free their caches."""
        for key in self._prefixes.keys:
            self._drop(key)

    async def idle(self) -> None:
        """Wait until no request is judged or waits."""
        while self._waiting or self._batch:
            self._became_idle.clear()
            await self._became_idle.wait()

    async def run(self) -> None:
        """Judge until cancelled.

        Raises EngineError when the engine has failed.
        """
        while True:
            self._arrived.clear()
            if not (self._waiting or self._batch or self._reveals or self._released):
                self._became_idle.set()
                await self._arrived.wait()
            await self._answer_reveals()
            await self._pass()

    def _add(self, key: str, message: JudgeRequest, reply: Reply) -> None:
        tokens = self._prefixes.update(key, message)
        if (dropped := self._prefixes.next_dropped()) is not None:
            self._drop(dropped)
        if isinstance(tokens, int):
            logger.debug("out of step: request=%s have=%d", message.request_id, tokens)
            _send(reply, OutOfStep(message.request_id, message.round, tokens))
            return
        tree = read_tree(
            message.tree_tokens, message.tree_parents, bytes(len(message.tree_tokens) // 4)
        )
        if tree is None or max(tree.tokens, default=0) >= self._num_vocabulary:
            tree = EMPTY_TREE
        work = JudgeWork(
            key=key,
            tokens=tokens,
            num_prompt=len(tokens),
            tree=tree,
            sampling=Sampling(),
            wanted=_wanted(message, 1 + len(tree)),
        )
        self._waiting[key] = _Waiting(message, work, reply)
        self._arrived.set()

    def _drop(self, key: str) -> None:
        if self._prefixes.drop(key):
            self._waiting.pop(key, None)
            self._released.append(key)
            self._arrived.set()

    async def _answer_reveals(self) -> None:
        while self._reveals:
            key, reveal, reply = self._reveals.popleft()
            wanted = Wanted(
                num_scores=reveal.num_scores,
                num_logits=reveal.num_logits,
                also=tuple(unpack_tokens(reveal.ids)),
                is_dense=reveal.is_dense,
            )
            lists = None
            if max(wanted.also, default=0) < self._num_vocabulary:
                call = functools.partial(self._engine.reveal, key, reveal.node, wanted)
                lists = await self._thread.run(call)
            self.num_reveals += 1
            if lists is None:
                _send(reply, OutOfStep(reveal.request_id, reveal.round, 0))
            else:
                _send(reply, _judgement(reveal, lists, 0.0))

    async def _pass(self) -> None:
        """Run one forward pass, and answer the works that it completes."""
        self._fill_batch()
        released, works = list(self._released), [each.work for each in self._batch.values()]
        self._released.clear()
        outcomes, elapsed_s = await self._run_engine(works, released)
        self.busy_s += elapsed_s
        for key, outcome in zip(list(self._batch), outcomes, strict=True):
            if isinstance(outcome, Prefilling):
                continue
            each = self._batch.pop(key)
            if isinstance(outcome, RowLists):
                self.num_judged += len(outcome.lse)
                _send(each.reply, _judgement(each.request, outcome, elapsed_s))
            else:
                if isinstance(outcome, FailedWork):
                    self._log_failure(key, outcome.error)
                _send(each.reply, OutOfStep(each.request.request_id, each.request.round, 0))

    def _fill_batch(self) -> None:
        for key in self._released:
            self._batch.pop(key, None)
        keys = [key for key in self._waiting if key not in self._batch]
        for index in round_robin(keys)[: self._max_batch - len(self._batch)]:
            self._batch[keys[index]] = self._waiting.pop(keys[index])

    async def _run_engine(
        self, works: list[JudgeWork], released: list[str]
    ) -> tuple[list[Outcome], float]:
        """Run a pass; if it fails, run its works one by one."""
        try:
            return await self._thread.run(
                functools.partial(_timed_step, self._engine, works, released)
            )
        except EngineError:
            raise
        except Exception as error:  # noqa: BLE001 -- any work may be its cause
            if len(works) == 1:
                return [FailedWork(error)], 0.0
        alone = [await self._run_engine([work], []) for work in works]
        return [outcome for [outcome], _ in alone], sum(elapsed_s for _, elapsed_s in alone)

    def _log_failure(self, key: str, error: Exception) -> None:
        if self._log_throttle.is_due(type(error).__name__, time.monotonic()):
            logger.error("judgement failed: request=%s cause=%s", key, cause_of(error))


def _wanted(request: JudgeRequest, num_rows: int) -> Wanted:
    """The lists that a request wants of each row, limited to the size of a judgement."""
    most = MAX_PREFIX_TOKENS // num_rows
    num_scores = 0 if request.coupling.is_greedy else min(request.num_scores, most)
    return Wanted(
        noise=request.coupling,
        num_scores=num_scores,
        num_logits=min(request.num_logits, most - num_scores),
        also=tuple(unpack_tokens(request.also)),
    )


def _judgement(request: JudgeRequest | Reveal, lists: RowLists, compute_s: float) -> Judgement:
    return Judgement(
        request_id=request.request_id,
        round=request.round,
        lse=lists.lse.tobytes(),
        ids=lists.ids.tobytes(),
        logits=lists.logits.tobytes(),
        score_bounds=b"" if lists.score_bounds is None else lists.score_bounds.tobytes(),
        logit_bounds=b"" if lists.logit_bounds is None else lists.logit_bounds.tobytes(),
        also=lists.also.tobytes(),
        compute_us=round(compute_s * 1e6),
    )


def _send(reply: Reply, message: AnyMessage) -> None:
    try:
        reply(message)
    except LinkError:
        logger.debug("link ended before the answer")


def _timed_step(
    engine: MemberEngine, works: list[JudgeWork], released: list[str]
) -> tuple[list[Outcome], float]:
    for key in released:
        engine.release(key)
    start = time.perf_counter()
    outcomes = engine.step(works).outcomes if works else []
    return outcomes, time.perf_counter() - start
