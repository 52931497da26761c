"""A target node without a network, and drafters behind faulty links, for whole sessions.

The planner gets scripted pass times, so that its decisions do not depend on the machine.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from edgecosine.balance.batch_wait import ExpectedArrival
from edgecosine.balance.cost_model import PassReport
from edgecosine.balance.planner import Planner
from edgecosine.balance.request_state import RequestState
from edgecosine.balance.statistics import Statistics
from edgecosine.engine.base import (
    DraftEngine,
    TargetEngine,
)
from edgecosine.engine.tokenizer import TextCodec
from edgecosine.errors import EngineError, LinkLost
from edgecosine.metrics.measurements import Measurements
from edgecosine.node.drafter.draft_worker import DraftWorker
from edgecosine.node.links.pending_requests import Reply
from edgecosine.node.runtime.engine_thread import EngineThread
from edgecosine.node.target.drafter_link import DrafterLink
from edgecosine.node.target.text_service import TextService
from edgecosine.node.target.verifier import Verifier
from edgecosine.protocol.api.channels import CONTENT
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Answer, Delta, Progress
from edgecosine.protocol.wire.messages import (
    AnyMessage,
    Draft,
    DraftRequest,
    OutOfStep,
    Release,
    pack_tokens,
)
from tests.support.engines import NUM_TOKENS, byte_codec

PASS_S = 1.0
"""Reported time of each pass, so long that any good draft pays."""


class LinkFault(enum.Enum):
    """What happens to one draft request. A late one times out at once."""

    FINE = enum.auto()
    REQUEST_LATE = enum.auto()
    ANSWER_LATE = enum.auto()
    LINK_LOST = enum.auto()
    LINK_LOST_UNSEEN = enum.auto()
    FORGOTTEN = enum.auto()
    ALWAYS_OUT_OF_STEP = enum.auto()
    CLAIMS_TO_HAVE_MORE = enum.auto()
    WRONG_TOKENS = enum.auto()
    BEYOND_THE_VOCABULARY = enum.auto()
    TOO_FEW_CONFIDENCES = enum.auto()
    TOO_MANY_TOKENS = enum.auto()
    NOTHING = enum.auto()
    SLOW = enum.auto()


class FakeLink:
    """A drafter in memory behind the real `DraftWorker`; implements `DrafterLink`.

    A lost link is missing for `absence` calls of `look`, and returns to a drafter without state.
    Requests wait until `held` is set.
    """

    def __init__(
        self,
        worker: DraftWorker,
        faults: Iterable[LinkFault],
        tasks: asyncio.TaskGroup,
        *,
        absence: int = 2,
    ) -> None:
        self._worker, self._faults = worker, itertools.cycle(faults)
        self._tasks = tasks
        self._replies: set[asyncio.Future[Reply]] = set()
        self._absence, self._away = absence, 0
        self.max_context, self.is_leaving = 0, False
        self.asked: list[DraftRequest] = []
        self._num_answered = 0
        self._answered = asyncio.Event()
        self.released: list[str] = []
        self.has_request = asyncio.Event()
        self.held: asyncio.Event | None = None

    def look(self) -> bool:
        """Whether the link is up."""
        self._away = max(0, self._away - 1)
        return not self._away

    async def idle(self) -> None:
        """Wait until all requests are answered."""
        while self._num_answered < len(self.asked):
            self._answered.clear()
            await self._answered.wait()

    def ask(self, request: DraftRequest) -> asyncio.Future[Reply]:
        if self._away:
            raise LinkLost("the link is down")
        self.asked.append(request)
        self.has_request.set()
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        task = self._tasks.create_task(self._reply(request, reply), name="drafter")
        reply.add_done_callback(lambda _: task.cancel())
        self._replies.add(reply)
        reply.add_done_callback(self._replies.discard)
        return reply

    def close(self) -> None:
        """Nothing is answered any more."""
        for reply in self._replies:
            reply.cancel()

    async def _reply(self, request: DraftRequest, reply: asyncio.Future[Reply]) -> None:
        try:
            answer = await self._answer_or_fail(request)
        except (LinkLost, TimeoutError) as error:
            if not reply.done():
                reply.set_exception(error)
        else:
            if not reply.done():
                reply.set_result(answer)

    async def _answer_or_fail(self, request: DraftRequest) -> Reply:
        if self.held is not None:
            await self.held.wait()
        fault = next(self._faults)
        try:
            answer = await self._answer(fault, request)
        finally:
            self._num_answered += 1
            self._answered.set()
        if isinstance(answer, OutOfStep):
            return answer
        return _spoil(fault, answer)

    def send(self, message: AnyMessage) -> None:
        if self._away:
            raise LinkLost("the link is down")
        assert isinstance(message, Release)
        self.released.append(message.request_id)
        self._worker.on_request(message, lambda _: None)

    def lose(self) -> None:
        """The link is cut."""
        self._away = self._absence
        self._worker.drop_all()

    async def _answer(self, fault: LinkFault, request: DraftRequest) -> Draft | OutOfStep:
        match fault:
            case LinkFault.REQUEST_LATE:
                raise TimeoutError
            case LinkFault.LINK_LOST:
                self.lose()
                raise LinkLost("cut")
            case LinkFault.LINK_LOST_UNSEEN:
                self._worker.drop_all()
            case LinkFault.FORGOTTEN:
                self._worker.on_request(Release(request.request_id), lambda _: None)
            case LinkFault.ALWAYS_OUT_OF_STEP:
                return OutOfStep(request.request_id, request.round, 0)
            case LinkFault.CLAIMS_TO_HAVE_MORE:
                return OutOfStep(request.request_id, request.round, 1 << 20)
            case LinkFault.SLOW:
                for _ in range(5):
                    await asyncio.sleep(0)
        answer: asyncio.Future[AnyMessage] = asyncio.get_running_loop().create_future()

        def reply(message: AnyMessage) -> None:
            if not answer.done():
                answer.set_result(message)

        self._worker.on_request(request, reply)
        if fault is LinkFault.ANSWER_LATE:
            raise TimeoutError
        message = await answer
        assert isinstance(message, Draft | OutOfStep)
        return message


def outlasting(link: Callable[[], FakeLink]) -> Callable[[int, list[str]], None]:
    """What a target does before each pass so that it ends after the drafts that were requested
    before and during it; called in the event loop."""
    loop = asyncio.get_running_loop()

    def before_pass(_: int, keys: list[str]) -> None:
        if keys != ["profile"]:
            asyncio.run_coroutine_threadsafe(link().idle(), loop).result(10)

    return before_pass


def _spoil(fault: LinkFault, draft: Draft) -> Draft:
    num_tokens, tokens, confidences = len(draft.confidences), draft.tokens, draft.confidences
    match fault:
        case LinkFault.WRONG_TOKENS:
            tokens = pack_tokens([0] * num_tokens)
        case LinkFault.BEYOND_THE_VOCABULARY:
            tokens = pack_tokens([NUM_TOKENS + 5] * num_tokens)
        case LinkFault.TOO_FEW_CONFIDENCES:
            confidences = confidences[:-1]
        case LinkFault.TOO_MANY_TOKENS:
            tokens, confidences = tokens + pack_tokens([7] * 60), confidences + bytes([255] * 60)
        case LinkFault.NOTHING:
            tokens = confidences = b""
    return Draft(
        draft.request_id, draft.round, tokens, confidences, draft.parents, draft.compute_us
    )


@dataclass
class TargetHarness:
    """A running target node without a network."""

    service: TextService
    verifier: Verifier
    target: Any
    planner: Planner
    links: dict[str, FakeLink]
    drafters: list[DraftWorker]
    measurements: Measurements

    async def ask(self, request: Request) -> list[Progress]:
        """All progress that a request yields."""
        async with aclosing(self.service.answer(request)) as steps:
            return [step async for step in steps]

    async def answer(self, request: Request) -> Answer:
        """The request's answer; checks that it comes last, after deltas that make up its text."""
        steps = await self.ask(request)
        answers = [step for step in steps if isinstance(step, Answer)]
        assert answers == steps[-1:]
        deltas = [step for step in steps if isinstance(step, Delta)]
        assert [delta.index for delta in deltas] == list(range(len(deltas)))
        content = [delta.text for delta in deltas if delta.channel == CONTENT]
        assert "".join(content) == answers[0].text
        return answers[0]


@dataclass
class Drafter:
    """A drafter of a harness, and the successive faults of its link."""

    engine: DraftEngine
    faults: Sequence[LinkFault] = field(default=(LinkFault.FINE,))


@dataclass(frozen=True)
class SteadyCosts:
    """Reports the same time for every pass, whatever the machine does."""

    statistics: Statistics
    seconds: float

    def pass_s(self, num_rows: int) -> float:
        return self.seconds

    def observe_pass(self, report: PassReport) -> None:
        self.statistics.observe_pass(PassReport(report.num_rows, self.seconds))

    def worked_beside_s(self, moment: float) -> float:
        return 0.0

    def batch_wait_s(self, num_rows: int, arrivals: Sequence[ExpectedArrival]) -> float | None:
        return self.statistics.batch_wait_s(num_rows, arrivals)


@asynccontextmanager
async def harness(
    target: TargetEngine,
    setups: Sequence[Drafter] = (),
    *,
    pass_s: float = PASS_S,
    max_sessions: int = 4,
    may_fail: bool = False,
    codec: TextCodec | None = None,
    tool_format: str = "auto",
) -> AsyncIterator[TargetHarness]:
    """A running target with its drafters; all tasks have ended afterwards.

    `codec` is the model's, by default one over bytes. If the engine `may_fail`, the other tasks
    continue after its failure.
    """
    planner, measurements = Planner(), Measurements()
    planner.statistics.observe_lone_round = partial(  # type: ignore[method-assign]
        _observe_steady_round, planner.statistics.observe_lone_round, pass_s
    )
    links: dict[str, FakeLink] = {}

    def look() -> Mapping[str, DrafterLink]:
        return {node_id: link for node_id, link in links.items() if link.look()}

    with ExitStack() as threads:
        thread = threads.enter_context(EngineThread("target"))
        verifier = Verifier(
            engine=target,
            thread=thread,
            max_batch=max_sessions,
            costs=SteadyCosts(planner.statistics, pass_s),
        )
        drafters: list[DraftWorker] = []
        for number, setup in enumerate(setups):
            thread = threads.enter_context(EngineThread(f"drafter-{number}"))
            drafters.append(DraftWorker(engine=setup.engine, thread=thread, max_batch=4))
        service = TextService(
            model="scripted",
            codec=codec or byte_codec(),
            max_context=target.max_context,
            max_sessions=max_sessions,
            exactness="bitwise",
            verifier=verifier,
            planner=planner,
            drafters=look,
            tool_format=tool_format,
            measurements=measurements,
        )
        async with asyncio.TaskGroup() as group:
            loops = [_verify(verifier, may_fail), *(worker.run() for worker in drafters)]
            tasks = [group.create_task(loop, name="harness") for loop in loops]
            for number, (worker, setup) in enumerate(zip(drafters, setups, strict=True)):
                links[f"drafter-{number}"] = FakeLink(worker, setup.faults, group)
            yield TargetHarness(service, verifier, target, planner, links, drafters, measurements)
            for link in links.values():
                link.close()
            for task in tasks:
                task.cancel()


def _observe_steady_round(
    observe: Callable[..., None],
    pass_s: float,
    request: RequestState,
    num_tokens: int,
    round_s: float,
    **named: bool,
) -> None:
    """Learn from a round as if it took a pass, like `SteadyCosts`."""
    observe(request, num_tokens, pass_s, **named)


async def _verify(verifier: Verifier, may_fail: bool) -> None:
    with suppress(*[EngineError] * may_fail):
        await verifier.run()
