"""The actor around a draft engine: answers draft requests in batches.

It updates each request's prefix from the target's messages and passes whole prefixes to the engine.
The newest round of a request replaces older ones that still wait. Targets are served round robin,
and cannot affect each other's requests. A failed draft is empty and ends no other.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgecosine.balance.cost_model import smooth
from edgecosine.engine.base import DraftEngine, DraftResult, DraftWork
from edgecosine.errors import LinkError
from edgecosine.log_throttle import LogThrottle
from edgecosine.node.runtime.clock import now
from edgecosine.node.runtime.engine_thread import EngineThread
from edgecosine.node.runtime.failures import cause_of
from edgecosine.node.runtime.held_prefixes import (
    MAX_REQUESTS,
    MAX_TOKEN,
    HeldPrefixes,
    key_of,
    round_robin,
)
from edgecosine.protocol.wire.messages import (
    MAX_NLL,
    AnyMessage,
    Draft,
    DraftRequest,
    OutOfStep,
    Release,
    pack_parents,
    pack_shares,
    pack_tokens,
    read_tree,
)
from edgecosine.protocol.wire.prompt_score import NO_PROMPT_SCORE, PromptScore
from edgecosine.protocol.wire.tree import EMPTY_TREE, TokenTree

logger = logging.getLogger(__name__)

_EMPTY_DRAFT = DraftResult((), ())

Reply = Callable[[AnyMessage], None]
"""Sends an answer; raises LinkError if the link has ended."""


@dataclass(slots=True)
class _WaitingRequest:
    key: str
    request: DraftRequest
    tokens: Sequence[int]
    tree: TokenTree | None
    """The tree that the target is verifying; None for a draft after the prefix alone."""
    reply: Reply
    num_steps: int = 0
    """Steps of the batches that the draft was in until now."""
    num_grown: int = 0
    """Those of them that grew its tree."""
    spent_s: float = 0.0
    ends_s: float = math.inf
    """When the target expects what there is of the draft."""
    score: PromptScore = NO_PROMPT_SCORE
    """Of the tokens that these steps read."""

    @property
    def is_awaited(self) -> bool:
        """Whether a round of the target waits for the draft."""
        return not (self.request.is_ahead or self.request.is_probe)


class DraftWorker:
    """Batches the draft requests of all links into drafting steps."""

    def __init__(
        self,
        *,
        engine: DraftEngine,
        thread: EngineThread,
        max_batch: int,
        num_vocabulary: int = MAX_TOKEN,
    ) -> None:
        self._engine, self._thread, self._max_batch = engine, thread, max_batch
        self._num_vocabulary = num_vocabulary
        self._prefixes = HeldPrefixes(num_vocabulary)
        self._waiting: OrderedDict[tuple[str, bool], _WaitingRequest] = OrderedDict()
        self._is_awaited = self._has_arrival = False
        """Whether a target waits for a request that came after the running batch began, and whether
        any came; read by the engine's thread between steps."""
        self._serves_awaited = False
        """Whether targets wait for the running batch."""
        self._ends_s = math.inf
        """When the first answer to the running batch is expected."""
        self._step_s = 0.0
        """Smoothed time of a step."""
        self._num_steps = 0
        """Of the running batch; written by the engine's thread."""
        self._counts_steps = False
        """Whether the engine has ever counted a step."""
        self._released: deque[str] = deque(maxlen=MAX_REQUESTS)
        """Beyond its bound the engine reclaims the slots itself when it needs them."""
        self._arrived = asyncio.Event()
        self._is_drafting = False
        self._became_idle = asyncio.Event()
        self._log_throttle = LogThrottle()
        self.num_tokens = 0
        self.num_stale = 0
        self.busy_s = 0.0

    def __repr__(self) -> str:
        return f"<DraftWorker [{len(self._waiting)} waiting, {len(self._prefixes)} requests]>"

    def on_request(self, message: DraftRequest | Release, reply: Reply, target: str = "") -> None:
        """Handle a message of `target`; the answer is passed to `reply`, at once or by `run`."""
        key = key_of(message.request_id, target)
        if isinstance(message, Release):
            self._drop(key)
            return
        try:
            self._add(key, message, reply)
        except Exception as error:  # noqa: BLE001 -- the error is this request's alone
            self._log_failure(key, error)
            _send(reply, _draft(message, _EMPTY_DRAFT))

    def _add(self, key: str, message: DraftRequest, reply: Reply) -> None:
        tokens = self._prefixes.update(key, message)
        if (dropped := self._prefixes.next_dropped()) is not None:
            self._drop(dropped)
        if isinstance(tokens, int):
            logger.debug("out of step: request=%s have=%d", message.request_id, tokens)
            _send(reply, OutOfStep(message.request_id, message.round, tokens, message.is_ahead))
            return
        tree = _verified_tree(message, self._num_vocabulary)
        self._drop_stale(key, message.round)
        ends_s = now() + message.within_us * 1e-6 if message.within_us else math.inf
        waiting = _WaitingRequest(key, message, tokens, tree, reply, ends_s=ends_s)
        self._waiting[key, message.is_ahead] = waiting
        self._is_awaited |= waiting.is_awaited
        self._has_arrival = True
        self._arrived.set()

    def drop_all(self) -> None:
        """Drop all waiting requests, and free their caches."""
        for request_id in self._prefixes.keys:
            self._drop(request_id)

    async def idle(self) -> None:
        """Wait until no request is drafted or waits."""
        while self._waiting or self._is_drafting:
            self._became_idle.clear()
            await self._became_idle.wait()

    async def run(self) -> None:
        """Draft until cancelled."""
        while True:
            self._arrived.clear()
            if not self._waiting and not self._released:
                await self._arrived.wait()
            self._is_drafting = True
            await self._step()
            self._is_drafting = False
            self._became_idle.set()

    def _drop(self, key: str) -> None:
        if not self._prefixes.drop(key):
            return
        for is_ahead in (False, True):
            self._waiting.pop((key, is_ahead), None)
        self._released.append(key)
        self._arrived.set()

    def _drop_stale(self, key: str, newest: int) -> None:
        for is_ahead in (False, True):
            waiting = self._waiting.get((key, is_ahead))
            if waiting is not None and waiting.request.round < newest:
                del self._waiting[key, is_ahead]
                self.num_stale += 1

    def _take(self) -> list[_WaitingRequest]:
        """The next batch, oldest requests first: those that a target waits for, else drafts ahead
        and probes; round robin between targets."""
        awaited = [key for key, each in self._waiting.items() if each.is_awaited]
        self._is_awaited = self._has_arrival = False
        self._serves_awaited = bool(awaited)
        keys = awaited or list(self._waiting)
        order = round_robin([key for key, _ in keys])[: self._max_batch]
        batch = [self._waiting.pop(keys[i]) for i in order]
        self._ends_s = min((each.ends_s for each in batch), default=math.inf)
        return batch

    async def _step(self) -> None:
        batch = self._take()
        released = list(self._released)
        self._released.clear()
        works = [_work(each) for each in batch]
        results, elapsed_s = await self._draft_batch(works, released)
        self.busy_s += elapsed_s
        if self._num_steps:
            self._step_s = smooth(self._step_s or None, elapsed_s / self._num_steps)
        moment = now()
        unfinished = list[_WaitingRequest]()
        for each, result in zip(batch, results, strict=True):
            each.num_steps += self._num_steps
            each.num_grown = result.num_steps
            each.spent_s += elapsed_s
            each.score = each.score.joined(result.prompt_score)
            has_time = moment + self._step_s <= each.ends_s
            if not result.is_complete and has_time and self._is_newest(each):
                unfinished.append(each)
            else:
                self.num_tokens += len(result.tokens)
                _send(each.reply, self._answer(each, result))
        for each in reversed(unfinished):
            self._waiting[each.key, each.request.is_ahead] = each
            self._waiting.move_to_end((each.key, each.request.is_ahead), last=False)

    def _is_newest(self, each: _WaitingRequest) -> bool:
        """Whether the request has not ended, and no newer one has replaced it."""
        is_replaced = any((each.key, is_ahead) in self._waiting for is_ahead in (False, True))
        return not is_replaced and each.key in self._prefixes.keys

    def _ends_early(self, num_complete: int, *, is_full: bool) -> bool:
        """Whether the batch ends after this step: to answer drafts that are complete or whose time
        is up, to let others join, or since a target waits for another draft."""
        self._num_steps += 1
        self._counts_steps = True
        if num_complete or now() + self._step_s > self._ends_s:
            return True
        if self._serves_awaited:
            return self._is_awaited and not is_full
        return self._is_awaited or (self._has_arrival and not is_full)

    def _answer(self, each: _WaitingRequest, result: DraftResult) -> Draft:
        num_steps = each.num_steps if self._counts_steps else -1
        try:
            return _draft(
                each.request, replace(result, prompt_score=each.score), each.spent_s, num_steps
            )
        except Exception as error:  # noqa: BLE001 -- a draft may not fit the wire format
            self._log_failure(each.request.request_id, error)
            return _draft(each.request, _EMPTY_DRAFT, each.spent_s, num_steps)

    async def _draft_batch(
        self, works: list[DraftWork], released: list[str]
    ) -> tuple[list[DraftResult], float]:
        """Run a batch; if it fails, run its works one by one."""
        try:
            return await self._run_engine(works, released)
        except Exception as error:  # noqa: BLE001 -- any work may be its cause
            if len(works) <= 1:
                self._log_failure(works[0].key if works else "none", error)
                return [_EMPTY_DRAFT] * len(works), 0.0
        alone = [await self._draft_batch([work], []) for work in works]
        return [result for [result], _ in alone], sum(elapsed_s for _, elapsed_s in alone)

    def _log_failure(self, key: str, error: Exception) -> None:
        if self._log_throttle.is_due(type(error).__name__, time.monotonic()):
            logger.error("draft failed: request=%s cause=%s", key, cause_of(error))

    async def _run_engine(
        self, works: list[DraftWork], released: list[str]
    ) -> tuple[list[DraftResult], float]:
        call = functools.partial(
            _timed_draft, self._engine, works, released, self._interruption(len(works))
        )
        return await self._thread.run(call)

    def _interruption(self, size: int) -> Callable[[int], bool]:
        """A function that returns, after each step, whether a batch of `size` works ends early."""
        self._num_steps = 0
        return functools.partial(self._ends_early, is_full=size >= self._max_batch)


def _verified_tree(message: DraftRequest, num_vocabulary: int) -> TokenTree | None:
    """The tree of a request ahead; an invalid one counts as empty."""
    if not message.is_ahead:
        return None
    tree = read_tree(message.tree_tokens, message.tree_parents, message.tree_confidences)
    is_known = tree is not None and all(token < num_vocabulary for token in tree.tokens)
    return tree if tree is not None and is_known else EMPTY_TREE


def _send(reply: Reply, message: AnyMessage) -> None:
    try:
        reply(message)
    except LinkError:
        logger.debug("link ended before the answer")


def _work(waiting: _WaitingRequest) -> DraftWork:
    request = waiting.request
    return DraftWork(
        key=waiting.key,
        tokens=waiting.tokens,
        num_tokens=request.num_tokens,
        num_steps=waiting.num_grown,
        width=request.width,
        noise=request.coupling,
        ahead=waiting.tree,
        shares=_shares(waiting),
    )


def _shares(waiting: _WaitingRequest) -> tuple[float, ...]:
    """Weights of the acceptance endpoints; empty if they do not fit the tree."""
    shares = waiting.request.outcome_shares
    if waiting.tree is None or len(shares) != 1 + len(waiting.tree):
        return ()
    return tuple([byte / 255 for byte in shares])


def _draft(
    request: DraftRequest, result: DraftResult, compute_s: float = 0.0, num_steps: int = -1
) -> Draft:
    return Draft(
        request_id=request.request_id,
        round=request.round,
        tokens=pack_tokens(result.tokens),
        confidences=pack_shares(result.confidences),
        parents=pack_parents(result.parents),
        compute_us=round(compute_s * 1e6),
        is_ahead=request.is_ahead,
        top1_matches=bytes(result.prompt_score.top1_matches),
        nll=min(MAX_NLL, result.prompt_score.nll),
        num_steps=num_steps,
    )


def _timed_draft(
    engine: DraftEngine,
    works: list[DraftWork],
    released: list[str],
    is_interrupted: Callable[[int], bool],
) -> tuple[list[DraftResult], float]:
    for key in released:
        engine.release(key)
    start = time.perf_counter()
    results = engine.draft(works, is_interrupted) if works else []
    return results, time.perf_counter() - start
