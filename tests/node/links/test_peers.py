"""Several nodes in one loop: each pair is linked exactly once, and lost nodes are reported."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from edgecosine.backoff import Backoff
from edgecosine.discovery.events import PeerGone, PeerSeen
from edgecosine.discovery.peer import Address, Advert
from edgecosine.node.links.heartbeat import Timing
from edgecosine.node.links.link import Link, LinkSettings
from edgecosine.node.links.peers import Discover, Peers
from tests.node.links.wire_fixtures import (
    LOCALHOST,
    QUICK,
    SLOW_HEART,
    draft_for,
    drafter_settings,
    request,
    run,
    target_settings,
)
from tests.support.links import relayed

EAGER = Backoff(0.01, 0.05)


@dataclass
class Air:
    """mDNS without a network: all nodes see all adverts, which are never withdrawn."""

    announced: dict[str, Advert] = field(default_factory=dict)
    ears: list[Callable[[PeerSeen | PeerGone], None]] = field(default_factory=list)

    def tell(self, advert: Advert) -> None:
        """Announce an advert to all nodes, present and future."""
        self.announced[advert.node_id] = advert
        for ear in self.ears:
            ear(PeerSeen(advert))

    async def run(self, advert: Advert, on_event: Callable[[PeerSeen | PeerGone], None]) -> None:
        self.tell(advert)
        self.ears.append(on_event)
        for known in list(self.announced.values()):
            on_event(PeerSeen(known))
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.ears.remove(on_event)


class Diary(logging.Handler):
    """Wakes a node's waiters whenever the peers actor writes a line."""

    def __init__(self, changed: asyncio.Event) -> None:
        super().__init__(logging.DEBUG)
        self._changed = changed

    def emit(self, record: logging.LogRecord) -> None:
        self._changed.set()


class Node:
    """Peers of one node, and the events that they reported."""

    def __init__(
        self, settings: LinkSettings, static: list[Address], discover: Discover | None
    ) -> None:
        self.changed = asyncio.Event()
        self.events: list[tuple[str, str]] = []
        self.peers = Peers(
            settings=settings,
            listen=[LOCALHOST],
            static=static,
            discover=discover,
            on_joined=lambda link: self._record("joined", link),
            on_lost=lambda link: self._record("lost", link),
            backoff=EAGER,
        )

    def _record(self, what: str, link: Link) -> None:
        self.events.append((what, link.peer.node_id))
        self.changed.set()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for a change of the links, or of their reasons, after which something is so."""
        log, diary = logging.getLogger("edgecosine.node.links.peers"), Diary(self.changed)
        level = log.level
        log.setLevel(logging.DEBUG)
        log.addHandler(diary)
        try:
            while not is_so():
                self.changed.clear()
                await self.changed.wait()
        finally:
            log.removeHandler(diary)
            log.setLevel(level)

    async def until_linked(self, *node_ids: str) -> None:
        await self.until(lambda: set(self.peers.links) == set(node_ids))


@asynccontextmanager
async def living(
    settings: LinkSettings, static: list[Address] | None = None, discover: Discover | None = None
) -> AsyncIterator[Node]:
    """A node that runs inside the block."""
    node = Node(settings, static or [], discover)
    async with asyncio.TaskGroup() as group:
        life = group.create_task(node.peers.run(), name="peers")
        try:
            await node.peers.listening()
            yield node
        finally:
            life.cancel()


async def address_of(node: Node) -> Address:
    return (await node.peers.listening())[0]


def test_target_dials_every_announced_drafter() -> None:
    async def main() -> None:
        air = Air()
        async with AsyncExitStack() as nodes:
            enter = nodes.enter_async_context
            target = await enter(living(target_settings(), discover=air.run))
            names = [f"drafter-{number}" for number in range(4)]
            drafters = [
                await enter(living(drafter_settings(node_id=name), discover=air.run))
                for name in names
            ]
            await target.until_linked(*names)
            for drafter in drafters:
                await drafter.until_linked("target-1")
            for link in target.peers.links.values():
                assert link.is_dialled
                assert await link.ask(request(1)) == draft_for(request(1))
            assert {e.state for e in target.peers.explain()} == {"linked"}

    run(main())


def test_static_peers_need_no_discovery() -> None:
    async def main() -> None:
        async with living(target_settings()) as target:
            address = await address_of(target)
            async with living(drafter_settings(), static=[address]) as drafter:
                await target.until_linked("drafter-1")
                await drafter.until_linked("target-1")
                assert drafter.peers.explain()[0].state == "linked"
            await target.until_linked()
            assert target.events == [("joined", "drafter-1"), ("lost", "drafter-1")]

    run(main())


def test_one_of_two_simultaneous_links_survives() -> None:
    async def main() -> None:
        air = Air()
        async with living(target_settings(), discover=air.run) as target:
            static = [await address_of(target)]
            drafter_process = living(drafter_settings(), static=static, discover=air.run)
            async with drafter_process as drafter:
                await target.until(lambda: "drafter-1" in target.peers.links)
                await drafter.until(lambda: "target-1" in drafter.peers.links)
                await target.until(lambda: not target.peers.links["drafter-1"].is_dialled)
                await drafter.until(lambda: drafter.peers.links["target-1"].is_dialled)
                link = target.peers.links["drafter-1"]
                assert await link.ask(request(1)) == draft_for(request(1))
                assert len(target.peers.links) == len(drafter.peers.links) == 1

    run(main())


def test_node_dialled_at_two_addresses_is_linked_once() -> None:
    async def main() -> None:
        air = Air()
        async with living(drafter_settings(), discover=air.run) as drafter:
            address = await address_of(drafter)
            async with relayed(address) as conditions:
                static = [address, conditions.address]
                async with living(target_settings(), static, air.run) as target:
                    await target.until_linked("drafter-1")
                    link = target.peers.links["drafter-1"]
                    assert await link.ask(request(1)) == draft_for(request(1))
                    await target.until(
                        lambda: {e.state for e in target.peers.explain()} == {"linked"}
                    )
                    assert target.peers.links["drafter-1"] is link
                    assert target.events == [("joined", "drafter-1")]

    run(main())


def test_restarted_node_replaces_its_dead_link_at_once() -> None:
    async def main() -> None:
        air = Air()
        async with (
            living(target_settings(), discover=air.run) as target,
            living(drafter_settings(incarnation=1)) as stalled,
            relayed(await address_of(stalled)) as conditions,
        ):
            air.tell(_advert("drafter-1", 1, *conditions.address))
            await target.until_linked("drafter-1")
            conditions.swallow()
            async with living(drafter_settings(incarnation=2), discover=air.run) as anew:
                await target.until(lambda: _incarnation_of(target) == 2)
                await anew.until_linked("target-1")
                link = target.peers.links["drafter-1"]
                assert await link.ask(request(4)) == draft_for(request(4))
                assert target.events.count(("lost", "drafter-1")) == 1

    run(main())


def test_false_announcement_neither_ends_a_link_nor_hides_its_node() -> None:
    async def main() -> None:
        air = Air()
        asked: asyncio.Queue[None] = asyncio.Queue()

        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.put_nowait(None)
            await reader.read()
            writer.close()

        adversary = await asyncio.start_server(hold, "127.0.0.1", 0)
        async with (
            living(drafter_settings(incarnation=1), discover=air.run) as drafter,
            living(target_settings(Timing(30.0, 3, 0.2, 0.5)), discover=air.run) as target,
        ):
            await target.until_linked("drafter-1")
            link = target.peers.links["drafter-1"]
            for life in (7, 8, 9):
                air.tell(_advert("drafter-1", life, *adversary.sockets[0].getsockname()[:2]))
            await asked.get()
            assert await link.ask(request(4)) == draft_for(request(4))
            for their_end in drafter.peers.links.values():
                their_end.abort("cable")
            await target.until(lambda: ("lost", "drafter-1") in target.events)
            await target.until_linked("drafter-1")
            assert _incarnation_of(target) == 1
        adversary.close()
        await adversary.wait_closed()

    run(main())


def test_many_false_names_do_not_delay_a_known_peer() -> None:
    async def main() -> None:
        air = Air()
        async with (
            silence() as pit,
            living(drafter_settings(), discover=air.run) as drafter,
            living(target_settings(), discover=air.run) as target,
        ):
            await target.until_linked("drafter-1")
            for number in range(100):
                air.tell(_advert(f"nobody-{number}", 1, *pit))
            for their_end in drafter.peers.links.values():
                their_end.abort("cable")
            await target.until(lambda: ("lost", "drafter-1") in target.events)
            await target.until_linked("drafter-1")

    run(main())


@asynccontextmanager
async def silence() -> AsyncIterator[Address]:
    """An address that accepts connections and never sends."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as deaf:
        yield Address(*deaf.getsockname()[:2])


def _incarnation_of(node: Node) -> int | None:
    link = node.peers.links.get("drafter-1")
    return link.peer.incarnation if link is not None else None


def _advert(node_id: str, incarnation: int, host: str, port: int) -> Advert:
    return Advert(node_id, incarnation, "lab", 1, "drafter", "toy", "", (host,), port)


def test_killed_node_is_lost_despite_its_announcement() -> None:
    async def main() -> None:
        air = Air()
        async with living(target_settings(), discover=air.run) as target:
            async with living(drafter_settings(), discover=air.run) as drafter:
                await target.until_linked("drafter-1")
                await drafter.until_linked("target-1")
                for link in drafter.peers.links.values():
                    link.abort("killed")
                await target.until(lambda: ("lost", "drafter-1") in target.events)
            assert "drafter-1" in air.announced
            await target.until_linked()
            assert [e.state for e in target.peers.explain()] != ["linked"]

    run(main())


def test_silent_node_is_lost_and_linked_again() -> None:
    async def main() -> None:
        async with (
            living(drafter_settings(timing=QUICK)) as drafter,
            relayed(await address_of(drafter)) as conditions,
            living(target_settings(QUICK), static=[conditions.address]) as target,
        ):
            await target.until_linked("drafter-1")
            conditions.swallow()
            await target.until_linked()
            conditions.is_swallowed = False
            await target.until_linked("drafter-1")

    run(main())


def test_reason_for_an_incompatible_peer_is_reported() -> None:
    async def main() -> None:
        air = Air()
        async with (
            living(target_settings(), discover=air.run) as target,
            living(drafter_settings(node_id="stranger", cluster="other"), discover=air.run),
            living(target_settings(node_id="target-2"), discover=air.run),
            living(drafter_settings(), discover=air.run),
        ):
            await target.until_linked("drafter-1")
            explained = {e.peer: (e.state, e.reason) for e in target.peers.explain()}
            assert explained == {
                "stranger": ("refused", "cluster other there, lab here"),
                "target-2": ("left out", "is a target too"),
                "drafter-1": ("linked", ""),
            }

    run(main())


def test_other_node_at_an_announced_address_is_not_confused_with_it() -> None:
    async def main() -> None:
        air = Air()
        async with living(drafter_settings(node_id="drafter-2")) as drafter:
            host, port = await address_of(drafter)
            air.announced["drafter-1"] = _advert("drafter-1", 1, host, port)
            async with living(target_settings(), discover=air.run) as target:
                await target.until(
                    lambda: any(
                        "is drafter-2, not drafter-1" in e.reason for e in target.peers.explain()
                    )
                )
                assert not target.peers.links

    run(main())


def test_stopping_node_announces_it() -> None:
    async def main() -> None:
        async with living(target_settings(SLOW_HEART)) as target:
            static = [await address_of(target)]
            async with living(drafter_settings(timing=SLOW_HEART), static=static):
                await target.until_linked("drafter-1")
                link = target.peers.links["drafter-1"]
            reason = await link.wait_closed()
            assert str(reason) == "the peer refused: this node is stopping"

    run(main())
