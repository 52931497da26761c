"""The outbox keeps order, forgets nothing that must arrive, and is bounded in all else."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.mqtt.outbox import Outbox
from edgecosine.protocol.api.mqtt_message import Outgoing


def sure(name: str) -> Outgoing:
    return Outgoing(name, b"", qos=1)


def loose(name: str) -> Outgoing:
    return Outgoing(name, b"", qos=0)


async def drain(outbox: Outbox) -> list[str]:
    """Take and settle all that waits."""
    topics = []
    while outbox:
        number, message = await outbox.take()
        outbox.settle(number)
        topics.append(message.topic)
    return topics


def test_unsettled_messages_are_taken_again_first_and_in_order() -> None:
    async def scenario() -> None:
        outbox = Outbox(10)
        for message in (sure("a"), loose("b"), sure("c"), sure("d"), sure("e")):
            outbox.put(message)
        numbers = [(await outbox.take())[0] for _ in range(4)]
        outbox.settle(numbers[2])
        outbox.rewind()
        assert await drain(outbox) == ["a", "d", "e"]

    asyncio.run(scenario())


def test_full_outbox_drops_qos_0_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        dropped: list[None] = []
        outbox = Outbox(2, on_drop=lambda: dropped.append(None))
        with caplog.at_level(logging.WARNING):
            for name in "abc":
                outbox.put(sure(name))
            outbox.put(loose("lost"))
            for name in "de":
                outbox.put(sure(name))
        assert len(dropped) == 1
        assert "1 dropped" in repr(outbox)
        assert await drain(outbox) == ["a", "b", "c", "d", "e"]
        outbox.put(loose("f"))
        assert await drain(outbox) == ["f"]

    asyncio.run(scenario())
    assert "outbox is full" in caplog.text


def test_outbox_is_bounded_in_bytes() -> None:
    outbox = Outbox(max_bytes=100)
    outbox.put(Outgoing("a", bytes(60), qos=0))
    assert not outbox.is_full
    outbox.put(Outgoing("b", bytes(60), qos=0))
    outbox.put(Outgoing("c", bytes(60), qos=0))
    assert outbox.is_full
    assert len(outbox) == 2


def test_correlation_data_count_as_bytes() -> None:
    outbox = Outbox(max_bytes=100)
    outbox.put(Outgoing("a", b"", correlation=bytes(60)))
    assert not outbox.is_full
    outbox.put(Outgoing("b", b"", correlation=bytes(60)))
    assert outbox.is_full


def test_newer_retained_message_replaces_the_older_one() -> None:
    async def scenario() -> None:
        outbox = Outbox(10)
        for payload in (b"1", b"2", b"3"):
            outbox.put(Outgoing("state", payload, retain=True))
            outbox.put(sure("other"))
        assert len(outbox) == 4
        number, first = await outbox.take()
        assert first.topic == "other"
        outbox.settle(number)
        numbers = [await outbox.take() for _ in range(3)]
        assert [message.topic for _, message in numbers] == ["other", "state", "other"]
        outbox.put(Outgoing("state", b"4", retain=True))
        outbox.rewind()
        payloads = [(await outbox.take())[1].payload for _ in range(len(outbox))]
        assert payloads.count(b"4") == 1
        assert b"3" not in payloads

    asyncio.run(scenario())


def test_sender_can_wait_for_room() -> None:
    async def scenario() -> None:
        outbox = Outbox(2)
        await outbox.room()
        for name in "abc":
            outbox.put(sure(name))
        async with asyncio.TaskGroup() as group:
            waiter = group.create_task(outbox.room())
            for _ in range(2):
                await asyncio.sleep(0)
                assert not waiter.done()
                number, _ = await outbox.take()
                outbox.settle(number)

    asyncio.run(scenario())


@given(st.lists(st.sampled_from(["sure", "loose", "state", "take", "settle", "rewind"])))
def test_qos_1_messages_are_settled_once_in_order_and_bytes_are_counted(
    events: list[str],
) -> None:
    """Whatever happens, messages of QoS 1 leave in the order in which they came."""

    async def scenario() -> None:
        outbox, in_flight, settled, wanted = Outbox(3, 50), [], [], []
        for number, event in enumerate(events):
            if event in ("sure", "loose", "state"):
                is_state, qos = event == "state", 0 if event == "loose" else 1
                payload = str(number).encode()
                topic = "state" if is_state else str(number)
                outbox.put(Outgoing(topic, payload, qos=qos, retain=is_state))  # type: ignore[arg-type]
                if event == "sure":
                    wanted.append(payload)
            elif event == "take" and outbox._waiting:
                in_flight.append(await outbox.take())
            elif event == "settle" and in_flight:
                taken, message = in_flight.pop(0)
                outbox.settle(taken)
                settled.append(message)
            elif event == "rewind":
                outbox.rewind()
                in_flight = []
        outbox.rewind()
        while outbox:
            taken, message = await outbox.take()
            outbox.settle(taken)
            settled.append(message)
        sure_ones = [m.payload for m in settled if m.qos and not m.retain]
        assert sure_ones == wanted
        assert not outbox.is_full
        states = [m.payload for m in settled if m.retain]
        said = [str(n).encode() for n, event in enumerate(events) if event == "state"]
        assert states[-1:] == said[-1:]
        assert outbox._num_bytes == 0

    asyncio.run(scenario())


def test_taker_waits_for_a_message() -> None:
    async def scenario() -> None:
        outbox = Outbox(2)
        async with asyncio.TaskGroup() as group:
            taker = group.create_task(outbox.take())
            await asyncio.sleep(0)
            outbox.put(sure("a"))
        assert taker.result()[1].topic == "a"

    asyncio.run(scenario())
