"""The actor around a draft engine: answers draft requests, many at once.

It keeps each request's prefix as the target's messages tell it and hands whole prefixes to the
engine. The newest round of a request replaces its older ones that still wait. Targets take turns,
and none of them has a say in another one's requests. Whatever is raised while a prefix is drafted
ends this draft, which is answered as nothing.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgecosine.engine.base import DraftEngine, DraftResult, DraftWork
from edgecosine.errors import LinkError
from edgecosine.log_throttle import LogThrottle
from edgecosine.node.runtime.engine_thread import EngineThread
from edgecosine.node.runtime.failures import cause_of
from edgecosine.protocol.wire.messages import (
    MAX_NLL,
    AnyMessage,
    Draft,
    DraftRequest,
    OutOfStep,
    Release,
    pack_shares,
    pack_tokens,
    read_tree,
    unpack_tokens,
)
from edgecosine.protocol.wire.prefix import Prefix
from edgecosine.protocol.wire.tree import EMPTY_TREE, TokenTree

logger = logging.getLogger(__name__)

MAX_REQUESTS = 1024
"""Requests whose prefixes are remembered; of the target with the most of them the least recently
drafted one is forgotten first."""

MAX_TOKEN = 1 << 32

_OF = "@"
"""Stands in a key between request and target; no node's name holds it."""

_NOTHING = DraftResult((), ())

Reply = Callable[[AnyMessage], None]
"""Sends an answer; may raise LinkError when the asker has gone."""


@dataclass(frozen=True, slots=True)
class _Ask:
    key: str
    request: DraftRequest
    tokens: tuple[int, ...]
    tree: TokenTree | None
    """What the target is verifying; None for an answer that it waits for."""
    reply: Reply


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
        self._prefixes: OrderedDict[str, Prefix] = OrderedDict()
        self._waiting: OrderedDict[tuple[str, bool], _Ask] = OrderedDict()
        self._is_awaited = False
        """Whether the target waits for a draft; read by the engine's thread between steps."""
        self._released: deque[str] = deque(maxlen=MAX_REQUESTS)
        """Of more than so many the engine finds out by itself, when it needs their room."""
        self._arrived = asyncio.Event()
        self._is_at_work = False
        self._rested = asyncio.Event()
        self._complaints = LogThrottle()
        self.num_tokens = 0
        self.num_stale = 0
        self.busy_s = 0.0

    def __repr__(self) -> str:
        return f"<DraftWorker [{len(self._waiting)} waiting, {len(self._prefixes)} requests]>"

    def on_request(self, message: DraftRequest | Release, reply: Reply, target: str = "") -> None:
        """Take a message of `target`; the answer goes to `reply`, at once or from `run`."""
        key = f"{message.request_id}{_OF}{target}" if target else message.request_id
        if isinstance(message, Release):
            self._forget(key)
            return
        try:
            self._take_in(key, message, reply)
        except Exception as error:  # noqa: BLE001 -- it is this request's
            self._complain(key, error)
            _send(reply, _draft(message, _NOTHING, 0.0))

    def _take_in(self, key: str, message: DraftRequest, reply: Reply) -> None:
        prefix = self._prefixes.setdefault(key, Prefix())
        self._prefixes.move_to_end(key)
        if len(self._prefixes) > MAX_REQUESTS:
            self._forget(self._to_be_forgotten())
        new_tokens = unpack_tokens(message.new_tokens)
        kept = message.prefix_len - len(new_tokens)
        is_known = all(token < self._num_vocabulary for token in new_tokens)
        if not is_known or not prefix.reconcile(kept, new_tokens, message.prefix_digest):
            have = len(prefix) if kept > len(prefix) else 0
            logger.debug("out of step: request=%s have=%d", message.request_id, have)
            _send(
                reply,
                OutOfStep(message.request_id, message.round, have, message.is_ahead),
            )
            return
        tree = _verified_tree(message, self._num_vocabulary)
        self._drop_stale(key, message.round)
        self._waiting[key, message.is_ahead] = _Ask(key, message, tuple(prefix.tokens), tree, reply)
        self._is_awaited |= not message.is_ahead
        self._arrived.set()

    def forget_all(self) -> None:
        """The target is gone: drop what waits and give all caches back."""
        for request_id in list(self._prefixes):
            self._forget(request_id)

    async def idle(self) -> None:
        """Wait until nothing is drafted and nobody waits."""
        while self._waiting or self._is_at_work:
            self._rested.clear()
            await self._rested.wait()

    async def run(self) -> None:
        """Draft as long as there are requests."""
        while True:
            self._arrived.clear()
            if not self._waiting and not self._released:
                await self._arrived.wait()
            self._is_at_work = True
            await self._step()
            self._is_at_work = False
            self._rested.set()

    def _to_be_forgotten(self) -> str:
        counts = Counter(map(_target_of, self._prefixes))
        most = max(counts, key=lambda target: counts[target])
        return next(key for key in self._prefixes if _target_of(key) == most)

    def _forget(self, key: str) -> None:
        if self._prefixes.pop(key, None) is None:
            return
        for is_ahead in (False, True):
            self._waiting.pop((key, is_ahead), None)
        self._released.append(key)
        self._arrived.set()

    def _drop_stale(self, key: str, newest: int) -> None:
        for is_ahead in (False, True):
            ask = self._waiting.get((key, is_ahead))
            if ask is not None and ask.request.round < newest:
                del self._waiting[key, is_ahead]
                self.num_stale += 1

    def _take(self) -> list[_Ask]:
        """The longest-waiting asks of those that a target waits for, else of those ahead; targets
        take turns."""
        awaited = [key for key in self._waiting if not key[1]]
        self._is_awaited = False
        keys = _in_turn(awaited or list(self._waiting))[: self._max_batch]
        return [self._waiting.pop(key) for key in keys]

    async def _step(self) -> None:
        batch = self._take()
        released = list(self._released)
        self._released.clear()
        works = [_work(ask) for ask in batch]
        proposals, elapsed_s = await self._propose(works, released)
        self.busy_s += elapsed_s
        for ask, proposal in zip(batch, proposals, strict=True):
            self.num_tokens += len(proposal.tokens)
            _send(ask.reply, self._answer(ask.request, proposal, elapsed_s))

    def _answer(self, request: DraftRequest, proposal: DraftResult, elapsed_s: float) -> Draft:
        try:
            return _draft(request, proposal, elapsed_s)
        except Exception as error:  # noqa: BLE001 -- an engine may propose what cannot be told
            self._complain(request.request_id, error)
            return _draft(request, _NOTHING, elapsed_s)

    async def _propose(
        self, works: list[DraftWork], released: list[str]
    ) -> tuple[list[DraftResult], float]:
        """The engine's proposals; of works that fail together, each one's own."""
        try:
            return await self._run_engine(works, released)
        except Exception as error:  # noqa: BLE001 -- whose it is remains to be seen
            if len(works) <= 1:
                self._complain(works[0].key if works else "none", error)
                return [_NOTHING] * len(works), 0.0
        alone = [await self._propose([work], []) for work in works]
        return [proposal for [proposal], _ in alone], sum(elapsed_s for _, elapsed_s in alone)

    def _complain(self, key: str, error: Exception) -> None:
        if self._complaints.is_due(type(error).__name__, time.monotonic()):
            logger.error("draft failed: request=%s cause=%s", key, cause_of(error))

    async def _run_engine(
        self, works: list[DraftWork], released: list[str]
    ) -> tuple[list[DraftResult], float]:
        call = functools.partial(
            _timed_draft, self._engine, works, released, lambda: self._is_awaited
        )
        return await self._thread.run(call)


def _verified_tree(message: DraftRequest, num_vocabulary: int) -> TokenTree | None:
    """The tree of a request ahead; one that makes no sense is taken as empty."""
    if not message.is_ahead:
        return None
    tree = read_tree(message.tree_tokens, message.tree_parents, message.tree_confidences)
    is_known = tree is not None and all(token < num_vocabulary for token in tree.tokens)
    return tree if tree is not None and is_known else EMPTY_TREE


def _target_of(key: str) -> str:
    _, of, target = key.rpartition(_OF)
    return target if of else ""


def _in_turn(keys: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """The first of each target, then the second of each, and so on."""
    places, so_far = list[int](), Counter[str]()
    for key, _ in keys:
        target = _target_of(key)
        places.append(so_far[target])
        so_far[target] += 1
    return [keys[i] for i in sorted(range(len(keys)), key=places.__getitem__)]


def _send(reply: Reply, message: AnyMessage) -> None:
    try:
        reply(message)
    except LinkError:
        logger.debug("answer dropped, its asker has gone")


def _work(ask: _Ask) -> DraftWork:
    request = ask.request
    return DraftWork(
        key=ask.key,
        tokens=ask.tokens,
        num_tokens=request.num_tokens,
        width=request.width,
        coupling=request.coupling,
        ahead=ask.tree,
        shares=_shares(ask),
    )


def _shares(ask: _Ask) -> tuple[float, ...]:
    """Weights of the outcomes; none where they do not fit the tree."""
    shares = ask.request.outcome_shares
    if ask.tree is None or len(shares) != 1 + len(ask.tree):
        return ()
    return tuple(byte / 255 for byte in shares)


def _draft(request: DraftRequest, proposal: DraftResult, compute_s: float) -> Draft:
    return Draft(
        request_id=request.request_id,
        round=request.round,
        tokens=pack_tokens(proposal.tokens),
        confidences=pack_shares(proposal.confidences),
        parents=bytes(parent + 1 for parent in proposal.parents),
        compute_us=round(compute_s * 1e6),
        is_ahead=request.is_ahead,
        top1_matches=bytes(proposal.hindsight.top1_matches),
        nll=min(MAX_NLL, proposal.hindsight.nll),
    )


def _timed_draft(
    engine: DraftEngine,
    works: list[DraftWork],
    released: list[str],
    is_awaited: Callable[[], bool],
) -> tuple[list[DraftResult], float]:
    for key in released:
        engine.release(key)
    start = time.perf_counter()
    proposals = engine.draft(works, is_awaited) if works else []
    return proposals, time.perf_counter() - start
