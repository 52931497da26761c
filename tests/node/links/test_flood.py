"""Peers that send as fast as their socket takes it: others are served, and the link ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from edgecosine.discovery.peer import Address
from edgecosine.node.links.listener import connect
from edgecosine.node.links.peer_budget import (
    BURST_MESSAGES,
    JOINS_WITHIN_S,
    LOOP_SHARE,
    MAX_BANS,
    MAX_EARNED_MESSAGES,
    MAX_JOINS,
    MESSAGES_PER_HEARTBEAT,
    LoopShare,
    PeerBans,
    PeerBudget,
)
from edgecosine.protocol.wire.codec import decode, encode
from edgecosine.protocol.wire.framing import FrameBuffer, frame
from edgecosine.protocol.wire.messages import (
    AnyMessage,
    Draft,
    DraftRequest,
    Hello,
    Ping,
    Pong,
    Release,
    pack_tokens,
)
from tests.node.links.test_peers import Node, living
from tests.node.links.wire_fixtures import (
    QUICK,
    Inbox,
    draft_for,
    drafter_hello,
    drafter_settings,
    echo,
    listening_node,
    logbook,
    request,
    run,
    target_hello,
    target_settings,
)

LATE_DRAFT = Draft("asker/1", 1, pack_tokens(range(128)), bytes(128), bytes(range(128)))
NUM_ASKS = 40
REASON = "sent more messages than were requested of it"


class Flooder(threading.Thread):
    """A peer in a thread of its own: greets, then repeats its messages until it is cut off."""

    def __init__(self, address: Address, hello: Hello, flood: Sequence[AnyMessage]) -> None:
        super().__init__()
        self._hello, self._flood = hello, b"".join(frame(encode(message)) for message in flood)
        self._socket = socket.create_connection(address)
        self.num_floods = 0

    def run(self) -> None:
        reading = threading.Thread(target=self._read)
        with contextlib.suppress(OSError):
            self._greet()
            reading.start()
            while True:
                self._socket.sendall(self._flood)
                self.num_floods += 1
        if reading.ident is not None:
            reading.join()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self.join()
        self._socket.close()

    def _greet(self) -> None:
        self._socket.sendall(frame(encode(self._hello)) + frame(encode(Ping(0))))
        buffer = FrameBuffer(1 << 21)
        while True:
            buffer.feed(self._socket.recv(65536))
            while (payload := buffer.next_frame()) is not None:
                if isinstance(message := decode(payload), Ping):
                    self._socket.sendall(frame(encode(Pong(message.number))))
                    return

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while self._socket.recv(65536):
                pass


@contextmanager
def flooding(address: Address, hello: Hello, flood: Sequence[AnyMessage]) -> Iterator[Flooder]:
    flooder = Flooder(address, hello, flood)
    flooder.start()
    try:
        yield flooder
    finally:
        flooder.stop()


async def assert_drafter_floods_in_vain(flood: Sequence[AnyMessage]) -> None:
    """An honest drafter is asked while another one floods; that one is cut off and kept out."""
    with logbook() as book:
        async with living(target_settings(QUICK)) as target:
            [address] = await target.peers.listening()
            async with living(drafter_settings(timing=QUICK), static=[address]):
                await target.until_linked("drafter-1")
                honest = target.peers.links["drafter-1"]
                with flooding(address, drafter_hello(node_id="hostile"), flood):
                    for number in range(NUM_ASKS):
                        assert await honest.ask(request(number)) == draft_for(request(number))
                    await until_recorded(target, "lost")
                assert REASON in await book.wait_for_line("lost: peer=hostile")
                assert "banned_s=60" in await book.wait_for_line("flooded: peer=hostile")
                with flooding(address, drafter_hello(node_id="hostile"), flood) as again:
                    await asyncio.to_thread(again.join)
                assert set(target.peers.links) == {"drafter-1"}
                assert await honest.ask(request(99)) == draft_for(request(99))
                assert target.events.count(("joined", "hostile")) == 1


async def until_recorded(node: Node, what: str, times: int = 1) -> None:
    await node.until(lambda: node.events.count((what, "hostile")) >= times)


def test_drafter_that_floods_pings_is_banned() -> None:
    run(assert_drafter_floods_in_vain([Ping(1)] * 1000))


def test_drafter_that_floods_unrequested_drafts_is_banned() -> None:
    run(assert_drafter_floods_in_vain([LATE_DRAFT] * 100))


def test_drafter_that_reconnects_constantly_is_banned() -> None:
    async def main() -> None:
        async with living(target_settings(QUICK)) as target:
            [address] = await target.peers.listening()
            for number in range(1, MAX_JOINS + 1):
                hostile = await connect(address, drafter_settings(node_id="hostile"))
                await until_recorded(target, "joined", number)
                hostile.abort("it goes")
                await until_recorded(target, "lost", number)
            again = await connect(address, drafter_settings(node_id="hostile"))
            assert "linked 32 times in a minute: banned for 60 s" in str(await again.wait_closed())
            assert target.events.count(("joined", "hostile")) == MAX_JOINS

    run(main())


def test_target_that_floods_releases_is_disconnected() -> None:
    async def main() -> None:
        with logbook() as book:
            async with living(drafter_settings(timing=QUICK)) as drafter:
                [address] = await drafter.peers.listening()
                with flooding(address, target_hello(node_id="hostile"), [Release("a/b")] * 1000):
                    await until_recorded(drafter, "lost")
            assert REASON in await book.wait_for_line("lost: peer=hostile")

    run(main())


def test_flood_of_requests_does_not_starve_other_targets() -> None:
    async def main() -> None:
        async with listening_node(drafter_settings(timing=QUICK)) as drafter:
            honest = await connect(drafter.address, target_settings(QUICK))
            flood = [request(number) for number in range(100)]
            with flooding(drafter.address, target_hello(node_id="hostile"), flood) as flooder:
                while not flooder.num_floods:
                    assert await honest.ask(request(1)) == draft_for(request(1))
                for number in range(NUM_ASKS):
                    assert await honest.ask(request(number)) == draft_for(request(number))
                assert flooder.is_alive()
            honest.close("done")
            await honest.wait_closed()

    run(main())


def test_flood_during_the_handshake_ends_the_link() -> None:
    async def main() -> None:
        with logbook() as book:
            async with listening_node(drafter_settings(timing=QUICK)) as drafter:
                hostile = socket.create_connection(drafter.address)
                hostile.sendall(frame(encode(target_hello())) + 1000 * frame(encode(Ping(1))))
                assert REASON in await book.wait_for_line("connection rejected")
                hostile.close()

    run(main())


def test_late_answers_to_many_requests_are_no_flood() -> None:
    async def main() -> None:
        inbox = Inbox()
        async with listening_node(drafter_settings(inbox)) as drafter:
            link = await connect(drafter.address, target_settings())
            asked: list[DraftRequest] = []
            asks = [link.ask(request(n)) for n in range(4 * BURST_MESSAGES)]
            while len(asked) < len(asks):
                theirs, message = await inbox.asked.get()
                assert isinstance(message, DraftRequest)
                asked.append(message)
            for ask in asks:
                ask.cancel()
            for message in asked:
                theirs.send(draft_for(message))
            last = link.ask(request(9999))
            echo(*await inbox.asked.get())
            assert await last == draft_for(request(9999))
            assert link.num_late == len(asked)
            link.close("done")
            await link.wait_closed()

    run(main())


def test_allowance_of_unanswered_requests_is_bounded() -> None:
    allowance = PeerBudget()
    for _ in range(10 * MAX_EARNED_MESSAGES):
        allowance.earn()
    assert [allowance.spend() for _ in range(MAX_EARNED_MESSAGES + 1)].count(False) == 1


def test_heartbeats_restore_the_allowance_up_to_the_burst() -> None:
    allowance = PeerBudget()
    assert all(allowance.spend() for _ in range(BURST_MESSAGES))
    allowance.beat()
    assert [allowance.spend() for _ in range(MESSAGES_PER_HEARTBEAT + 1)].count(True) == (
        MESSAGES_PER_HEARTBEAT
    )
    for _ in range(1000):
        allowance.beat()
    assert [allowance.spend() for _ in range(BURST_MESSAGES + 1)].count(False) == 1


def test_messages_of_a_link_are_limited_to_their_share_of_the_loop() -> None:
    share, now, used_s = LoopShare(), 0.0, 0.0
    for _ in range(1000):
        now += 0.001
        used_s += 0.001
        now += share.spend(0.001, now)
    assert round(used_s / now, 6) <= LOOP_SHARE


def test_stall_of_this_process_is_no_flood() -> None:
    assert LoopShare().spend(10.0, 10.0) == 0.0


def test_bans_grow_end_and_are_bounded() -> None:
    bans = PeerBans()
    first_s = bans.ban("hostile", "it floods", 0.0)
    assert bans.objection("hostile", first_s - 1) == "it floods: banned for 60 s"
    assert bans.objection("hostile", first_s) is None
    assert bans.ban("hostile", "it floods", first_s) == 2 * first_s
    for number in range(MAX_BANS):
        bans.ban(f"other-{number}", "it floods", 0.0)
    assert bans.objection("hostile", first_s + 1) is None


def test_peer_may_reconnect_occasionally_but_not_constantly() -> None:
    bans = PeerBans()
    assert all(bans.may_join("d", 3.0 * number) for number in range(1000))
    assert [bans.may_join("e", 0.0) for _ in range(MAX_JOINS + 1)].count(False) == 1
    assert bans.may_join("e", JOINS_WITHIN_S)
