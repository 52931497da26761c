"""The inbox: bounded, in order of arrival, and round robin beside a flooding sender."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from edgecosine.mqtt.inbox import Inbox
from edgecosine.protocol.api.mqtt_message import Incoming, Qos


class Box:
    """An inbox whose senders are the topics, and what it dropped."""

    def __init__(self, max_messages: int = 1000, max_bytes: int = 1 << 20) -> None:
        self.dropped: list[Incoming | None] = []
        self.inbox = Inbox(
            max_messages=max_messages,
            max_bytes=max_bytes,
            lane=lambda topic, _, __: topic,
            on_drop=self.dropped.append,
        )

    def put(self, sender: str, payload: bytes = b"", qos: Qos = 1) -> None:
        self.inbox.put(Incoming(sender, payload), qos)

    def take_all(self) -> list[tuple[str, bytes]]:
        taken = []
        while (message := self.inbox.take()) is not None:
            taken.append((message.topic, message.payload))
        return taken


@given(st.lists(st.sampled_from("abc"), max_size=100))
def test_moderate_senders_are_read_in_order_of_arrival(senders: list[str]) -> None:
    box = Box()
    for number, sender in enumerate(senders):
        box.put(sender, str(number).encode())
    assert [payload for _, payload in box.take_all()] == [
        str(number).encode() for number in range(len(senders))
    ]


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(0, 9000), st.sampled_from([0, 1])),
        max_size=80,
    ),
    st.integers(1, 20),
    st.integers(10_000, 40_000),
)
def test_every_message_is_read_or_dropped_once_within_the_bounds(
    messages: list[tuple[str, int, Qos]], max_messages: int, max_bytes: int
) -> None:
    box = Box(max_messages, max_bytes)
    read: list[tuple[str, bytes]] = []
    for number, (sender, size, qos) in enumerate(messages):
        box.put(sender, bytes(size), qos)
        assert len(box.inbox) <= max_messages
        if number % 3 == 0 and (message := box.inbox.take()) is not None:
            read.append((message.topic, message.payload))
    read += box.take_all()
    dropped = Counter((m.topic, m.payload) for m in box.dropped if m is not None)
    sent = Counter((sender, bytes(size)) for sender, size, _ in messages)
    assert len(read) + len(box.dropped) == len(messages)
    assert Counter(read) + dropped <= sent
    assert repr(box.inbox) == "<Inbox 0 waiting of 0 senders>"
    assert box.inbox.has_room(max_bytes)


def test_flooding_sender_is_read_after_others() -> None:
    box = Box()
    for number in range(800):
        box.put("flood", str(number).encode())
    for number in range(3):
        box.put("honest", str(number).encode())
    order = [sender for sender, _ in box.take_all()]
    last = max(place for place, sender in enumerate(order) if sender == "honest")
    assert last < 200
    assert len(order) == 803


def test_large_messages_exhaust_a_share_sooner() -> None:
    box = Box(max_bytes=100 << 20)
    for _ in range(100):
        box.put("flood", bytes(250_000))
    box.put("honest")
    assert [sender for sender, _ in box.take_all()].index("honest") < 4


def test_full_inbox_drops_messages_of_the_flood() -> None:
    box = Box(max_messages=300)
    for _ in range(1000):
        box.put("flood", qos=0)
    box.put("honest", qos=0)
    box.put("sure", qos=1)
    assert box.dropped == [None] * 702
    assert {"honest", "sure"} < {sender for sender, _ in box.take_all()}


def test_qos_0_is_dropped_first() -> None:
    box = Box(max_messages=10)
    for _ in range(10):
        box.put("a", qos=1)
    box.put("b", qos=0)
    assert box.dropped == [None]
    box.put("a", b"told", qos=1)
    assert box.dropped == [None, Incoming("a", b"told")]


def test_message_of_a_flood_is_dropped_before_it_is_decoded() -> None:
    box = Box(max_messages=300)
    while box.inbox.has_room(0):
        box.put("flood", qos=0)
    assert not box.inbox.wants("flood", b"")
    assert box.inbox.wants("honest", b"")
    box.inbox.clear()
    assert box.inbox.has_room(0)
    assert box.take_all() == []
