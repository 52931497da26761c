"""Announcing and listening over real multicast on loopback."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
import zeroconf
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from edgecosine.discovery.events import PeerGone, PeerSeen
from edgecosine.discovery.mdns import MAX_NAMES, SERVICE_TYPE, Mdns, multicast_works, service_info
from edgecosine.discovery.peer import Advert
from tests.discovery.adverts import advert

_ANSWER, _PTR, _IN, _TTL_S = 0x8400, 12, 1, 4500
"""Of the DNS: flags of an answer, a record's type and class, and its life."""
LOOPBACK = ["127.0.0.1"]
Events = asyncio.Queue[PeerSeen | PeerGone]


def _multicast_fault() -> str | None:
    """Why multicast does not work on loopback here, if it does not."""
    group = ("224.0.0.251", 53535)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as voice,
    ):
        try:
            ear.bind(group)
            member = socket.inet_aton(group[0]) + socket.inet_aton("127.0.0.1")
            ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            ear.settimeout(1.0)
            own = socket.inet_aton("127.0.0.1")
            voice.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)
            voice.sendto(b"?", group)
            ear.recv(1)
        except OSError as error:
            return str(error)
    return None


FAULT = _multicast_fault()
pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(FAULT is not None, reason=f"no multicast on loopback: {FAULT}"),
]


@asynccontextmanager
async def node(advert: Advert) -> AsyncIterator[Events]:
    """A node that announces and listens inside the block; yields the events of others."""
    events: Events = asyncio.Queue()

    def record(event: PeerSeen | PeerGone) -> None:
        events.put_nowait(event)

    async with asyncio.TaskGroup() as group:
        running = group.create_task(Mdns(interfaces=LOOPBACK).run(advert, record), name="mdns")
        try:
            yield events
        finally:
            running.cancel()


async def advert_of(events: Events, node_id: str) -> Advert:
    while True:
        event = await events.get()
        if isinstance(event, PeerSeen) and event.advert.node_id == node_id:
            return event.advert


def own(name: str, **changes: Any) -> Advert:
    """An advert in a cluster that no other test uses."""
    plain = {"cluster": "mdns-test", "addresses": ("127.0.0.1",)}
    return advert(node_id=name, **(plain | changes))


def test_two_nodes_receive_announcements_and_goodbyes() -> None:
    async def main() -> None:
        first = own("mdns-first", role="target", model="große Fabel", vocabulary="0" * 16)
        second = own("mdns.second_" + "x" * 50, addresses=("127.0.0.1", "::1"))
        async with asyncio.timeout(15), node(first) as events_of_first:
            async with node(second) as events_of_second:
                assert await advert_of(events_of_first, second.node_id) == second
                assert await advert_of(events_of_second, first.node_id) == first
            while await events_of_first.get() != PeerGone(second.node_id):
                pass

    uvloop.run(main())


def test_hostile_announcement_is_ignored_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        good = own("mdns-good")
        async with asyncio.timeout(15), node(own("mdns-ear", role="target")) as events:
            voice = AsyncZeroconf(interfaces=LOOPBACK)
            try:
                info = AsyncServiceInfo(
                    SERVICE_TYPE,
                    f"mdns-hostile.{SERVICE_TYPE}",
                    parsed_addresses=["127.0.0.1"],
                    port=7000,
                    properties={"id": "../etc", "role": "king", "junk": "x" * 200},
                    server="mdns-hostile.local.",
                )
                await (await voice.async_register_service(info, cooperating_responders=True))
                await (
                    await voice.async_register_service(
                        service_info(good), cooperating_responders=True
                    )
                )
                assert await advert_of(events, "mdns-good") == good
            finally:
                await voice.async_unregister_all_services()
                await voice.async_close()

    with caplog.at_level(logging.WARNING):
        uvloop.run(main())
    assert "announcement ignored: name='mdns-hostile" in caplog.text
    assert "reason=role 'king'" in caplog.text


def test_thousands_of_names_without_records_hide_no_node() -> None:
    async def main() -> None:
        late = own("mdns-late")
        async with asyncio.timeout(20), node(own("mdns-patient", role="target")) as events:
            voice = AsyncZeroconf(interfaces=LOOPBACK)
            try:
                spoofed = zeroconf.DNSOutgoing(_ANSWER)
                for number in range(2 * MAX_NAMES):
                    name = f"nobody-{number}.{SERVICE_TYPE}"
                    spoofed.add_answer_at_time(
                        zeroconf.DNSPointer(SERVICE_TYPE, _PTR, _IN, _TTL_S, name), 0
                    )
                await voice.zeroconf.async_wait_for_start()
                voice.zeroconf.async_send(spoofed)
                async with node(late):
                    assert await advert_of(events, "mdns-late") == late
            finally:
                await voice.async_close()

    uvloop.run(main())


def test_false_records_of_many_names_are_bounded() -> None:
    async def main() -> None:
        events: list[PeerSeen | PeerGone] = []
        mdns = Mdns(interfaces=LOOPBACK)
        advert = service_info(own("mdns-many"))
        for number in range(3 * MAX_NAMES):
            mdns._take(f"{number}.{SERVICE_TYPE}", advert, events.append)
            mdns._ignore(f"{number}.{SERVICE_TYPE}", ValueError("no"))
        assert len(events) == 3 * MAX_NAMES
        assert repr(mdns) == f"<Mdns {MAX_NAMES} nodes, {MAX_NAMES} ignored>"

    uvloop.run(main())


def test_multicast_works_if_the_own_announcement_returns() -> None:
    assert uvloop.run(multicast_works(LOOPBACK))
    assert not uvloop.run(multicast_works(["203.0.113.77"]))


def test_run_warns_and_returns_without_a_usable_interface(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        mdns = Mdns(interfaces=["203.0.113.77"])
        async with asyncio.timeout(10):
            await mdns.run(own("mdns-lonely"), lambda _: None)

    with caplog.at_level(logging.WARNING):
        uvloop.run(main())
    assert "name the peers with --peer HOST:PORT" in caplog.text
