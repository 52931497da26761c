"""A link over real sockets: greeting, asking, ending; every wait ends when the link does."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pytest

from edgecosine.discovery.peer import Address
from edgecosine.errors import (
    AddressTaken,
    LinkLost,
    LocalProtocolError,
    PeerMismatched,
)
from edgecosine.node.links.heartbeat import Timing
from edgecosine.node.links.link import Link
from edgecosine.node.links.link_policy import LinkPolicy
from edgecosine.node.links.listener import connect, listen
from edgecosine.protocol.wire.messages import Draft, DraftRequest, Leave, OutOfStep, Release
from edgecosine.protocol.wire.vocabulary import Vocabulary
from tests.node.links.wire_fixtures import (
    QUICK,
    SLOW_HEART,
    WORDS,
    Inbox,
    assert_serves_a_good_peer,
    draft_for,
    drafter_settings,
    listening_node,
    request,
    run,
    target_settings,
)
from tests.support.links import relayed


async def asked_of(inbox: Inbox) -> tuple[Link, DraftRequest]:
    link, message = await inbox.asked.get()
    assert isinstance(message, DraftRequest)
    return link, message


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_nodes_greet_and_a_request_is_answered(host: str) -> None:
    async def main() -> None:
        async with listening_node(address=Address(host, 0)) as drafter:
            link = await connect(drafter.address, target_settings())
            their_end = await drafter.ready.get()
            assert link.peer.node_id == "drafter-1"
            assert their_end.peer.node_id == "target-1"
            assert (link.is_dialled, their_end.is_dialled) == (True, False)
            assert link.is_within_machine
            assert their_end.is_within_machine
            assert 0 < link.rtt_s < math.inf
            assert await link.ask(request(3)) == draft_for(request(3))
            link.close("done")
            assert "closed here: done" in str(await link.wait_closed())
            assert "the peer refused: done" in str(await their_end.wait_closed())

    run(main())


def test_listener_accepts_ipv4_and_ipv6() -> None:
    async def main() -> None:
        settings = drafter_settings(guard=LinkPolicy(is_insecure=True))
        async with listening_node(settings, Address("", 0)) as drafter:
            for host in ("127.0.0.1", "::1"):
                await assert_serves_a_good_peer(Address(host, drafter.listener.port))

    run(main())


def test_answers_are_matched_to_requests_in_any_order() -> None:
    async def main() -> None:
        inbox = Inbox()
        async with listening_node(drafter_settings(inbox)) as drafter:
            link = await connect(drafter.address, target_settings())
            asks = [request(1), request(2), request(2, is_ahead=True), request(2, request_id="b/2")]
            tasks = [link.ask(ask) for ask in asks]
            taken = [await asked_of(inbox) for _ in asks]
            for their_end, asked in reversed(taken):
                their_end.send(draft_for(asked))
            assert [await task for task in tasks] == [draft_for(ask) for ask in asks]
            link.abort("done")

    run(main())


def test_out_of_step_is_an_answer_and_release_needs_none() -> None:
    async def main() -> None:
        inbox = Inbox()
        async with listening_node(drafter_settings(inbox)) as drafter:
            link = await connect(drafter.address, target_settings())
            task = link.ask(request(1))
            their_end, asked = await asked_of(inbox)
            their_end.send(OutOfStep(asked.request_id, asked.round, have=2))
            assert await task == OutOfStep(asked.request_id, 1, have=2)
            link.send(Release(asked.request_id))
            assert (await inbox.asked.get())[1] == Release(asked.request_id)
            link.abort("done")

    run(main())


def test_leaving_drafter_announces_it_and_answers_pending_requests() -> None:
    async def main() -> None:
        inbox = Inbox()
        async with listening_node(drafter_settings(inbox)) as drafter:
            link = await connect(drafter.address, target_settings())
            first, second = link.ask(request(1)), request(2)
            their_end, asked = await asked_of(inbox)
            their_end.send(Leave())
            their_end.send(draft_for(asked))
            assert await first == draft_for(asked)
            assert link.is_leaving
            task = link.ask(second)
            their_end.send(draft_for((await asked_of(inbox))[1]))
            assert await task == draft_for(second)
            link.abort("done")

    run(main())


def test_answer_to_a_cancelled_request_is_dropped() -> None:
    async def main() -> None:
        inbox = Inbox()
        async with listening_node(drafter_settings(inbox)) as drafter:
            link = await connect(drafter.address, target_settings())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await link.ask(request(1))
            their_end, late = await asked_of(inbox)
            their_end.send(draft_for(late))
            task = link.ask(request(2))
            _, asked = await asked_of(inbox)
            assert link.num_late == 1
            assert "1 pending, 1 late" in repr(link)
            their_end.send(draft_for(asked))
            await task
            assert "0 pending" in repr(link)
            link.abort("done")

    run(main())


def test_repeated_pending_request_raises_local_error() -> None:
    async def main() -> None:
        inbox = Inbox()
        async with listening_node(drafter_settings(inbox)) as drafter:
            link = await connect(drafter.address, target_settings())
            task = link.ask(request(1))
            their_end, asked = await asked_of(inbox)
            with pytest.raises(LocalProtocolError, match="requested twice"):
                await link.ask(request(1))
            their_end.send(draft_for(asked))
            assert await task == draft_for(asked)
            link.abort("done")

    run(main())


def test_target_cannot_send_drafts() -> None:
    async def main() -> None:
        async with listening_node() as drafter:
            link = await connect(drafter.address, target_settings())
            with pytest.raises(LocalProtocolError, match="a target sends no draft while ready"):
                link.send(Draft("a", 0, b"", b""))
            link.abort("done")

    run(main())


@pytest.mark.parametrize("end", ["close", "abort", "cut"])
def test_pending_request_ends_with_the_link(end: str) -> None:
    async def main() -> None:
        inbox = Inbox()
        async with (
            listening_node(drafter_settings(inbox)) as drafter,
            relayed(drafter.address) as conditions,
            asyncio.TaskGroup() as group,
        ):
            link = await connect(conditions.address, target_settings())
            task = group.create_task(_outcome(link, request(1)))
            their_end, asked = await asked_of(inbox)
            if end == "close":
                their_end.close("leaving")
            elif end == "abort":
                their_end.abort("crashed")
            else:
                conditions.cut()
            assert isinstance(await task, LinkLost)
            await link.closed
            await their_end.closed
            with pytest.raises(LinkLost):
                await link.ask(request(2))
            with pytest.raises(LinkLost):
                their_end.send(draft_for(asked))

    run(main())


async def _outcome(link: Link, asked: DraftRequest) -> object:
    try:
        return await link.ask(asked)
    except LinkLost as error:
        return error


def test_half_open_link_is_lost_after_three_silent_heartbeats() -> None:
    async def main() -> None:
        async with listening_node(drafter_settings(timing=QUICK)) as drafter:
            async with relayed(drafter.address) as conditions:
                link = await connect(conditions.address, target_settings(QUICK))
                their_end = await drafter.ready.get()
                conditions.swallow()
                assert "silent for 0.15 s" in str(await link.closed)
                assert "silent for 0.15 s" in str(await their_end.closed)
            await assert_serves_a_good_peer(drafter.address)

    run(main())


def test_heartbeats_measure_the_round_trip() -> None:
    async def main() -> None:
        async with listening_node() as drafter, relayed(drafter.address) as conditions:
            conditions.delay_s = 0.02
            started = time.perf_counter()
            link = await connect(conditions.address, target_settings())
            assert 0.03 <= link.rtt_s <= time.perf_counter() - started
            link.abort("done")

    run(main())


def test_peer_that_does_not_read_is_dropped() -> None:
    async def main() -> None:
        inbox = Inbox()
        async with listening_node(drafter_settings(inbox)) as drafter:
            async with relayed(drafter.address) as conditions:
                link = await connect(conditions.address, target_settings())
                conditions.stop_reading()
                large = request(1, prefix_len=1 << 18, new_tokens=bytes(4 << 18))
                while not link.closed.done():
                    link._socket.write(large)
                assert "does not read" in str(await link.wait_closed())
            await assert_serves_a_good_peer_behind(inbox, drafter.address)

    run(main())


async def assert_serves_a_good_peer_behind(inbox: Inbox, address: Address) -> None:
    link = await connect(address, target_settings(node_id="good-peer"))
    task = link.ask(request(9))
    their_end, asked = await asked_of(inbox)
    their_end.send(draft_for(asked))
    assert await task == draft_for(asked)
    link.abort("done")


def test_longest_prefix_is_transferred() -> None:
    async def main() -> None:
        async with listening_node() as drafter:
            link = await connect(drafter.address, target_settings())
            large = request(1, prefix_len=1 << 18, new_tokens=bytes(4 << 18))
            assert await link.ask(large) == draft_for(large)
            link.abort("done")

    run(main())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"protocol": 9}, "protocol 1 there, 9 here"),
        ({"cluster": "other"}, "cluster lab there, other here"),
        ({"role": "drafter"}, "both nodes are drafters"),
        ({"node_id": "drafter-1", "incarnation": 7}, "two nodes are called drafter-1"),
    ],
)
def test_incompatible_peer_gets_the_reason(changes: dict[str, Any], reason: str) -> None:
    async def main() -> None:
        async with listening_node() as drafter:
            with pytest.raises(PeerMismatched, match=reason):
                await connect(drafter.address, target_settings(**changes))
            await assert_serves_a_good_peer(drafter.address)

    run(main())


def test_another_vocabulary_is_refused_with_its_first_difference() -> None:
    other = Vocabulary.of([f"word{n}" if n != 300 else "x" for n in range(600)])

    async def main() -> None:
        async with listening_node(drafter_settings(vocabulary=other)) as drafter:
            with pytest.raises(PeerMismatched, match="token 300 is b'word300' here and b'x' there"):
                await connect(drafter.address, target_settings())
        async with listening_node(drafter_settings(vocabulary=WORDS)) as drafter:
            await assert_serves_a_good_peer(drafter.address)

    run(main())


def test_refused_connection_is_a_lost_link() -> None:
    async def main() -> None:
        async with listening_node() as drafter:
            nowhere = drafter.address
        with pytest.raises(LinkLost, match="cannot be reached"):
            await connect(nowhere, target_settings())

    run(main())


def test_cancelled_dial_leaves_no_connection() -> None:
    async def main() -> None:
        async with listening_node() as drafter, relayed(drafter.address) as conditions:
            conditions.hold()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await connect(conditions.address, target_settings())
            conditions.release()
            await assert_serves_a_good_peer(drafter.address)

    run(main())


def test_dial_without_a_greeting_times_out() -> None:
    async def main() -> None:
        async with listening_node() as drafter, relayed(drafter.address) as conditions:
            conditions.swallow()
            with pytest.raises(LinkLost, match=r"did not finish the handshake within 0.1 s"):
                await connect(conditions.address, target_settings(Timing(handshake_s=0.1)))

    run(main())


def test_occupied_port_is_a_configuration_error() -> None:
    async def main() -> None:
        async with listening_node() as drafter:
            with pytest.raises(AddressTaken, match=r"in use by another program: .* --listen"):
                await listen(drafter.address, drafter_settings(), lambda _: None)
            await assert_serves_a_good_peer(drafter.address)

    run(main())


def test_closed_listener_aborts_unfinished_handshakes() -> None:
    async def main() -> None:
        async with listening_node(drafter_settings(timing=SLOW_HEART)) as drafter:
            reader, writer = await asyncio.open_connection(*drafter.address)
            assert await reader.readexactly(4)
            drafter.listener.close()
            assert await _ends(reader)
            writer.close()

    run(main())


async def _ends(reader: asyncio.StreamReader) -> bool:
    try:
        while await reader.read(65536):
            pass
    except ConnectionError:
        pass
    return True
