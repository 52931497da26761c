"""Shared by tests of links and peers: an event loop, greetings, settings and listening nodes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import uvloop

from edgecosine.discovery.peer import Address
from edgecosine.node.links.heartbeat import Timing
from edgecosine.node.links.link import Link, LinkSettings
from edgecosine.node.links.link_policy import LinkPolicy
from edgecosine.node.links.listener import Listener, connect, listen
from edgecosine.protocol.wire.messages import Draft, DraftRequest, Hello, Release, pack_tokens
from edgecosine.protocol.wire.vocabulary import ANY_VOCABULARY, Vocabulary
from tests.protocol.wire.values import hello

Result = TypeVar("Result")
PATIENCE_S = 20.0
WORDS = Vocabulary.of([f"word{number}" for number in range(600)])
LOCALHOST = Address("127.0.0.1", 0)
QUICK = Timing(heartbeat_s=0.05, handshake_s=5.0, linger_s=0.5)
SLOW_HEART = Timing(heartbeat_s=30.0, handshake_s=5.0, linger_s=0.5)


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a test's coroutine on uvloop; a task that it leaves behind is a failure."""

    async def bounded() -> Result:
        async with asyncio.timeout(PATIENCE_S):
            result = await main
        leaked = asyncio.all_tasks() - {asyncio.current_task()}
        assert not leaked, f"leaked tasks: {leaked}"
        return result

    return uvloop.run(bounded())


def target_hello(**changes: Any) -> Hello:
    """A target with 600 words."""
    return hello(vocabulary=WORDS.digests, **changes)


def drafter_hello(**changes: Any) -> Hello:
    """A drafter that takes any vocabulary."""
    return hello(**({"node_id": "drafter-1", "role": "drafter"} | changes))


def request(number: int = 0, **changes: Any) -> DraftRequest:
    """Round `number` of a request."""
    plain = DraftRequest("asker/1", number, 3, 7, pack_tokens([1, 2, 3]), 4)
    return msgspec.structs.replace(plain, **changes)


def draft_for(asked: DraftRequest) -> Draft:
    """The answer of the echoing drafter."""
    tokens = pack_tokens([asked.round] * asked.num_tokens)
    return Draft(
        asked.request_id, asked.round, tokens, bytes(asked.num_tokens), b"", 5, asked.is_ahead
    )


def echo(link: Link, message: DraftRequest | Release) -> None:
    """Answer each request at once."""
    if isinstance(message, DraftRequest):
        link.send(draft_for(message))


class Logbook(logging.Handler):
    """Logged lines, for tests that wait for one."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self._news = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self._news.set()

    async def wait_for_line(self, text: str) -> str:
        """Wait for a line with this text."""
        while True:
            for line in self.lines:
                if text in line:
                    return line
            await self.next_line()

    async def next_line(self) -> None:
        """Wait for any line."""
        self._news.clear()
        await self._news.wait()


@contextmanager
def logbook(name: str = "edgecosine") -> Iterator[Logbook]:
    """Yields the lines that are logged within the block."""
    log, book = logging.getLogger(name), Logbook()
    level = log.level
    log.setLevel(logging.DEBUG)
    log.addHandler(book)
    try:
        yield book
    finally:
        log.removeHandler(book)
        log.setLevel(level)


@dataclass
class Inbox:
    """Keeps requests, for tests that answer later or never."""

    asked: asyncio.Queue[tuple[Link, DraftRequest | Release]] = field(default_factory=asyncio.Queue)

    def __call__(self, link: Link, message: DraftRequest | Release) -> None:
        self.asked.put_nowait((link, message))


def reject_request(_link: Link, message: DraftRequest | Release) -> None:
    """For targets, which get no requests."""
    raise AssertionError(f"a target was asked {message}")


def target_settings(
    timing: Timing = SLOW_HEART, guard: LinkPolicy | None = None, **changes: Any
) -> LinkSettings:
    """Settings of the target of most tests."""
    hello = target_hello(**changes)
    return LinkSettings(hello, WORDS, reject_request, timing, guard=guard or LinkPolicy())


def drafter_settings(
    on_request: Any = echo,
    timing: Timing = SLOW_HEART,
    vocabulary: Vocabulary = ANY_VOCABULARY,
    guard: LinkPolicy | None = None,
    **changes: Any,
) -> LinkSettings:
    """Settings of the drafter of most tests."""
    greeting = drafter_hello(vocabulary=vocabulary.digests, **changes)
    return LinkSettings(greeting, vocabulary, on_request, timing, guard=guard or LinkPolicy())


@dataclass
class ListenerFixture:
    """A listening node, and the links that came in."""

    listener: Listener
    settings: LinkSettings
    ready: asyncio.Queue[Link] = field(default_factory=asyncio.Queue)

    @property
    def address(self) -> Address:
        return self.listener.addresses[0]


@asynccontextmanager
async def listening_node(
    settings: LinkSettings | None = None, address: Address = LOCALHOST, max_unfinished: int = 32
) -> AsyncIterator[ListenerFixture]:
    """A drafter that listens."""
    ready: asyncio.Queue[Link] = asyncio.Queue()
    chosen = settings or drafter_settings()
    listener = await listen(address, chosen, ready.put_nowait, max_unfinished=max_unfinished)
    try:
        yield ListenerFixture(listener, chosen, ready)
    finally:
        listener.close()
        while not ready.empty():
            ready.get_nowait().abort("the test is over")


async def assert_serves_a_good_peer(address: Address) -> None:
    """The node at this address greets, answers and ends the link."""
    link = await connect(address, target_settings(node_id="good-peer"))
    asked = request(7)
    assert await link.ask(asked) == draft_for(asked)
    link.close("the test has seen enough")
    await link.wait_closed()
