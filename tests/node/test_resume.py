"""A gateway that is killed at every record of its journal: same text, one final, no gap."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgecosine.node import journal as journal_module
from edgecosine.node.journal import DiskJournal
from edgecosine.node.journal_store import Statement
from edgecosine.node.moments import Moment
from edgecosine.node.reception import Reception, model_of
from edgecosine.node.resume import read_past
from edgecosine.node.service import Service
from edgecosine.protocol.choices import choices_of
from edgecosine.protocol.intake import Accepted, Ticket
from edgecosine.protocol.publication import Outgoing
from edgecosine.protocol.request import Request, Sampling
from edgecosine.protocol.topics import Topics
from tests.fakes_engine import ScriptedDrafter, ScriptedTarget, alone, babble
from tests.house import Neighbour, house
from tests.mqtt_fixtures import run

HOME = Topics("home")
FINAL = HOME.response("a", "1")
STREAM = HOME.stream("a", "1")
NEVER = 1000
LANGUAGE = babble(eos_every=40)

REQUESTS = (
    Request("a", "1", "completion", "To be", stream=True, max_tokens=24),
    Request(
        "a", "1", "completion", "To be", stream=True, max_tokens=24, n=2, top_logprobs=2,
        sampling=Sampling(temperature=0.8, seed=3, min_tokens=6), stop=("ab", "cdd"),
    ),
)  # fmt: skip


@dataclass
class World:
    """What the outside has seen, over all lives of the gateway."""

    texts: dict[int, str] = field(default_factory=dict)
    finals: list[bytes] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    num_deaths: int = 0

    def see(self, message: Outgoing) -> None:
        """A reader that keeps `text[:i] + delta`, and finds no gap and no contradiction."""
        if message.topic == FINAL:
            self.finals.append(message.payload)
        elif message.topic == STREAM:
            piece = json.loads(message.payload)
            if piece["fin"]:
                assert piece["i"] == sum(map(len, self.texts.values()))
                return
            choice, index, delta = piece.get("choice", 0), piece["i"], piece["delta"]
            text = self.texts.get(choice, "")
            assert index <= len(text), "a gap"
            common = min(len(text) - index, len(delta))
            assert text[index : index + common] == delta[:common], "a contradiction"
            self.texts[choice] = text[:index] + delta + text[index + len(delta) :]
        else:
            self.states.append(json.loads(message.payload)["state"])


class Killed(Exception):
    """The process is gone."""


class MortalJournal(DiskJournal):
    """Dies before its record number `dies_at`, or right behind the one before."""

    def __init__(self, directory: Path, dies_at: int, *, is_late: bool = False) -> None:
        super().__init__(directory)
        self.is_dead = False
        self.news = asyncio.Event()
        self._num_left, self._is_late = dies_at, is_late
        self._write_really, self.store.write = self.store.write, self._write_mortally  # type: ignore[method-assign]

    def _write_mortally(self, statements: Iterable[Statement], *, is_lasting: bool) -> None:
        if not self._num_left:
            self._die()
            raise Killed
        self._write_really(statements, is_lasting=is_lasting)
        self._num_left -= 1
        if self._is_late and not self._num_left:
            self._die()

    def _die(self) -> None:
        self.is_dead = True
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self.news.set)


@pytest.fixture(autouse=True)
def _one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each record is a transaction of its own."""
    monkeypatch.setattr(journal_module, "_MAX_BATCH", 1)


async def live(
    service: Service, journal: MortalJournal, world: World, request: Request, *, asks: bool
) -> None:
    """One life of a gateway, until it is killed or has nothing left to do."""

    def send(message: Outgoing) -> None:
        if not journal.is_dead:
            world.see(message)
            journal.news.set()
            reception.delivered(message)

    past = read_past(journal, model_of(service), Moment.now())
    reception = Reception(service, topics=HOME, send=send, max_queued=4, journal=journal, past=past)
    ticket = Ticket("a", "1", request.kind, FINAL, wants_stream=request.stream, digest=b"d")
    try:
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(journal.run())
            running = group.create_task(reception.run())
            await asyncio.sleep(0)
            if asks:
                reception.take(Accepted(ticket, request))
            while not (journal.is_dead or world.finals):
                journal.news.clear()
                await journal.news.wait()
            if not journal.is_dead:
                await journal.settled()
            running.cancel()
            await asyncio.wait([running])
            writing.cancel()
    except* Killed:
        pass
    world.num_deaths += journal.is_dead


async def lives(request: Request, directory: Path, *deaths: tuple[int, bool]) -> World:
    """Ask once, be killed as often as told, then live on; the whole thing with drafters."""
    world = World()
    neighbours = [Neighbour(ScriptedDrafter(LANGUAGE, hits=0.6))]
    for number, (dies_at, is_late) in enumerate([*deaths, (NEVER, False)]):
        async with house(ScriptedTarget(LANGUAGE), neighbours) as home:
            journal = MortalJournal(directory, dies_at, is_late=is_late)
            # Whoever was never told that the request is accepted asks again.
            asks = number == 0 or not world.states
            await live(home.serving, journal, world, request, asks=asks)
    return world


def assert_as_if_nothing_had_happened(world: World, request: Request) -> None:
    said = [alone(LANGUAGE, choice) for choice in choices_of(request)]
    assert len(set(world.finals)) == 1
    final = json.loads(world.finals[0])
    assert [choice["text"] for choice in final["choices"]] == [each.text for each in said]
    assert [choice["finish_reason"] for choice in final["choices"]] == [
        each.finish_reason for each in said
    ]
    if request.top_logprobs is not None:
        told = [choice["logprobs"]["token_logprobs"] for choice in final["choices"]]
        assert told == [[each.drawn for each in choice.logprobs] for choice in said]
    assert final["usage"]["completion_tokens"] == sum(len(each.tokens) for each in said)
    assert [world.texts.get(number, "") for number in range(request.n)] == [
        each.text for each in said
    ]


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("request_", REQUESTS, ids=["greedy", "sampled"])
def test_killed_at_any_record_it_ends_as_it_would_have(
    request_: Request, is_late: bool, tmp_path: Path
) -> None:
    async def story() -> None:
        for dies_at in range(NEVER):
            directory = tmp_path / str(dies_at)
            world = await lives(request_, directory, (dies_at, is_late))
            assert_as_if_nothing_had_happened(world, request_)
            if not world.num_deaths:
                break
        assert dies_at > 5

    run(story())
