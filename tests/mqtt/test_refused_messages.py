"""What a broker refuses for good is found, and nothing else is given up."""

from __future__ import annotations

import asyncio

import pytest

from edgecosine.mqtt.broker_limits import BrokerLimits, packet_bytes
from edgecosine.mqtt.outbox import Outbox
from edgecosine.mqtt.refused_messages import RETRY_S, RefusedMessages
from edgecosine.protocol.api.mqtt_message import Outgoing

FINAL, OTHER = Outgoing("final", b"text"), Outgoing("other", b"text")


def state(number: int) -> Outgoing:
    return Outgoing("state", b"x" * number, retain=True)


def test_message_alone_in_flight_at_two_losses_is_given_up() -> None:
    refusals = RefusedMessages()
    assert [refusals.lost(each, 0.0) for each in (FINAL, OTHER, FINAL)] == [False] * 3
    refusals.taken(FINAL)
    assert not refusals.lost(FINAL, 0.0)
    assert not refusals.lost(None, 0.0)
    assert refusals.lost(FINAL, 0.0)
    assert not refusals.lost(FINAL, 0.0)


@pytest.mark.parametrize("reason_code", [139, 141, 142])
def test_message_is_kept_if_the_broker_gives_another_reason(
    reason_code: int,
) -> None:
    refusals = RefusedMessages()
    assert not refusals.lost(FINAL, 0.0)
    assert not refusals.lost(FINAL, 0.0, reason_code)
    assert refusals.lost(FINAL, 0.0, 149)


def test_refused_retained_message_is_sent_again_only_if_shorter() -> None:
    refusals = RefusedMessages()
    assert not refusals.lost(state(8), 0.0)
    assert refusals.lost(state(9), 0.0)
    assert refusals.objection(state(9), 0.0)
    assert refusals.objection(state(10), 0.0)
    assert refusals.objection(state(8), 0.0) is None
    assert refusals.objection(FINAL, 0.0) is None
    assert refusals.objection(state(9), RETRY_S) is None
    for number in range(100):
        for _ in range(2):
            refusals.lost(Outgoing(str(number), b"", retain=True), 0.0)
    assert refusals.objection(state(9), 0.0) is None


def test_messages_in_flight_at_a_loss_are_sent_one_at_a_time() -> None:
    async def scenario() -> None:
        outbox = Outbox()
        for name in "abcd":
            outbox.put(Outgoing(name, b""))
        for _ in range(3):
            await outbox.take()
        assert outbox.lose() is None
        taken = []
        for _ in range(2):
            number, message = await outbox.take()
            async with asyncio.TaskGroup() as group:
                next_one = group.create_task(outbox.take())
                await asyncio.sleep(0)
                assert not next_one.done()
                outbox.settle(number)
            taken.append(message.topic)
            number, message = next_one.result()
            taken.append(message.topic)
            if message.topic == "d":
                break
            outbox.settle(number)
        assert taken == list("abcd")
        assert outbox.lose() == Outgoing("d", b"")

    asyncio.run(scenario())


def test_given_up_message_is_not_taken_again() -> None:
    async def scenario() -> None:
        outbox = Outbox()
        for message in (FINAL, state(1), OTHER):
            outbox.put(message)
        await outbox.take()
        assert outbox.lose() == FINAL
        outbox.put(state(2))
        outbox.give_up(FINAL)
        outbox.give_up(state(1))
        assert (await outbox.take())[1] == OTHER
        assert len(outbox) == 1
        outbox.settle(3)
        assert outbox._num_bytes == 0

    asyncio.run(scenario())


def test_objection_follows_the_brokers_limits() -> None:
    limits = BrokerLimits(max_packet_bytes=100, max_qos=0, keeps_retained=False)
    assert limits.fit(state(1)) == Outgoing("state", b"x", qos=0)
    assert BrokerLimits().fit(state(1)) is not None
    assert limits.objection(state(60)) is None
    assert "100" in str(limits.objection(state(100)))
    assert "100" in str(limits.objection(Outgoing("a", b"", correlation=bytes(100))))
    assert "topic" in str(BrokerLimits().objection(Outgoing("a\uffff", b"")))


def test_estimated_packet_length_is_never_too_short() -> None:
    message = Outgoing("a", b"b", correlation=b"c", response_topic="d", content_type="e",
                       expiry_s=60, user=(("f", "g"), ("h", "i")))  # fmt: skip
    on_the_wire = 2 + 3 + 2 + 1 + 4 + 4 + 4 + 5 + 2 * 7 + 1
    assert on_the_wire <= packet_bytes(message) <= on_the_wire + 40
