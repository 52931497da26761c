"""A committee without a network: members behind links that encode every message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field

from edgecosine.engine.base import MemberEngine
from edgecosine.errors import LinkLost, RemoteProtocolError
from edgecosine.node.member.local_member import LocalMember
from edgecosine.node.member.member_worker import MemberWorker
from edgecosine.node.runtime.engine_thread import EngineThread
from edgecosine.node.target.committee import LISTED, Committee, Seat
from edgecosine.node.target.member_client import MemberClient
from edgecosine.protocol.wire.codec import decode, encode
from edgecosine.protocol.wire.messages import (
    AnyMessage,
    Judgement,
    JudgeRequest,
    OutOfStep,
    Reveal,
)


@dataclass
class CodedLink:
    """A link to a member in memory, whose messages are encoded and decoded.

    `held` keeps requests as long as it is not set; a cut link loses requests and answers;
    `on_request` is called with each request on its way.
    """

    member: LocalMember
    worker: MemberWorker
    requests: list[AnyMessage] = field(default_factory=list)
    put_out_for: list[RemoteProtocolError] = field(default_factory=list)
    held: asyncio.Event | None = None
    cut: asyncio.Event = field(default_factory=asyncio.Event)
    on_request: Callable[[JudgeRequest | Reveal], object] = lambda _: None

    async def judge(self, request: JudgeRequest | Reveal) -> Judgement | OutOfStep:
        self._check()
        sent = decode(encode(request))
        assert isinstance(sent, JudgeRequest | Reveal)
        self.requests.append(sent)
        self.on_request(sent)
        if self.held is not None:
            await self._until_cut(self.held)
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(self.member.judge(sent), name="answer")
            ending = group.create_task(self.cut.wait(), name="ending")
            await asyncio.wait((answer, ending), return_when=asyncio.FIRST_COMPLETED)
            answer.cancel()
            ending.cancel()
        self._check()
        received = decode(encode(answer.result()))
        assert isinstance(received, Judgement | OutOfStep)
        return self.change(received)

    def change(self, answer: Judgement | OutOfStep) -> Judgement | OutOfStep:
        """What arrives."""
        return answer

    def send(self, message: AnyMessage) -> None:
        self._check()
        self.member.send(decode(encode(message)))

    def put_out(self, error: RemoteProtocolError) -> None:
        self.put_out_for.append(error)
        self.cut.set()

    def _check(self) -> None:
        if self.cut.is_set():
            raise LinkLost("cut")

    async def _until_cut(self, event: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(each.wait(), name="wait") for each in (event, self.cut)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        self._check()


@dataclass
class CommitteeHarness:
    """A running committee; `links` are the linked nodes of each member, by node id."""

    committee: Committee
    clients: dict[str, MemberClient]
    links: dict[str, dict[str, CodedLink]]
    workers: dict[str, MemberWorker]

    def add(self, name: str, node_id: str, link: CodedLink) -> None:
        self.links[name][node_id] = link
        self.clients[name].on_links_changed()

    def remove(self, name: str, node_id: str) -> None:
        self.links[name].pop(node_id).cut.set()
        self.clients[name].on_links_changed()

    def link(self, node_id: str) -> CodedLink:
        """A new link to a node that runs."""
        worker = self.workers[node_id]
        return CodedLink(LocalMember(worker), worker)


@asynccontextmanager
async def committee_of(
    engines: Mapping[str, Sequence[MemberEngine]],
    weights: Sequence[float],
    *,
    vocabulary: int,
    listed: int = LISTED,
    waits: bool = True,
    eos_tokens: Sequence[int] = (),
    link_type: type[CodedLink] = CodedLink,
    max_batch: int = 4,
) -> AsyncIterator[CommitteeHarness]:
    """A committee whose members each have one or more nodes, called NAME-0, NAME-1, ..."""
    links: dict[str, dict[str, CodedLink]] = {name: {} for name in engines}
    clients = {
        name: MemberClient(name, links[name].copy, waits=waits, is_remote=bool(number))
        for number, name in enumerate(engines)
    }
    with ExitStack() as threads:
        workers = {
            f"{name}-{number}": MemberWorker(
                engine=engine,
                thread=threads.enter_context(EngineThread(name)),
                max_batch=max_batch,
                num_vocabulary=vocabulary,
            )
            for name, nodes in engines.items()
            for number, engine in enumerate(nodes)
        }
        for node_id, worker in workers.items():
            links[node_id.rpartition("-")[0]][node_id] = link_type(LocalMember(worker), worker)
        committee = Committee(
            [
                Seat(name, weight, clients[name])
                for name, weight in zip(engines, weights, strict=True)
            ],
            vocabulary=vocabulary,
            eos_tokens=eos_tokens,
            listed=listed,
        )
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(w.run(), name=n) for n, w in workers.items()]
            yield CommitteeHarness(committee, clients, links, workers)
            for task in tasks:
                task.cancel()
