"""The outbox keeps order, forgets nothing of QoS 1, and has an end."""

from __future__ import annotations

import asyncio
import logging

import pytest

from edgecosine.node.outbox import Outbox
from edgecosine.protocol.publication import Outgoing


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


def test_unsettled_messages_come_again_first_and_in_order() -> None:
    async def story() -> None:
        outbox = Outbox(10)
        for message in (sure("a"), loose("b"), sure("c"), sure("d"), sure("e")):
            outbox.put(message)
        numbers = [(await outbox.take())[0] for _ in range(4)]
        outbox.settle(numbers[2])
        outbox.rewind()
        assert await drain(outbox) == ["a", "d", "e"]

    asyncio.run(story())


def test_full_outbox_drops_what_may_be_lost_and_at_last_the_oldest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        outbox = Outbox(2)
        with caplog.at_level(logging.WARNING):
            for name in "abc":
                outbox.put(sure(name))
            outbox.put(loose("lost"))
            for name in "de":
                outbox.put(sure(name))
        assert "2 dropped" in repr(outbox)
        assert await drain(outbox) == ["b", "c", "d", "e"]

    asyncio.run(story())
    assert "outbox is full" in caplog.text


def test_taker_waits_for_a_message() -> None:
    async def story() -> None:
        outbox = Outbox(2)
        async with asyncio.TaskGroup() as group:
            taker = group.create_task(outbox.take())
            await asyncio.sleep(0)
            outbox.put(sure("a"))
        assert taker.result()[1].topic == "a"

    asyncio.run(story())
