"""Packets out of a stream in whatever pieces it comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.mqtt.packets import Packets, is_qos_0, message_of_qos_0, peek
from edgecosine.protocol.api.mqtt_message import Outgoing


def packet(first: int, body: bytes) -> bytes:
    length, rest = b"", len(body)
    while True:
        rest, byte = divmod(rest, 128)
        length += bytes([byte | (128 if rest else 0)])
        if not rest:
            return bytes([first]) + length + body


def read(packets: Packets) -> list[tuple[int, bytes]]:
    found = []
    while (each := packets.next()) is not None:
        found.append((each[0], bytes(each[1])))
    return found


@given(
    st.lists(
        st.tuples(st.integers(0, 255), st.sampled_from([0, 1, 2, 127, 128, 300, 16383, 16384])),
        max_size=6,
    ),
    st.lists(st.integers(1, 20_000), min_size=1),
)
def test_packets_do_not_depend_on_the_division_of_the_stream(
    sent: list[tuple[int, int]], cuts: list[int]
) -> None:
    whole = [(first, bytes(i % 251 for i in range(size))) for first, size in sent]
    stream = b"".join(packet(first, body) for first, body in whole)
    packets, found = Packets(), []
    while stream:
        size = cuts[len(found) % len(cuts)]
        packets.feed(stream[:size])
        stream = stream[size:]
        found += read(packets)
    assert found == whole


def test_length_of_five_bytes_is_refused() -> None:
    packets = Packets()
    packets.feed(b"\x30\xff\xff\xff")
    assert packets.next() is None
    packets.feed(b"\xff\xff")
    with pytest.raises(ValueError, match="four bytes"):
        packets.next()


def test_topic_and_payload_are_read_without_decoding() -> None:
    topic = b"\x00\x03a/b"
    assert is_qos_0(0x30)
    assert is_qos_0(0x31)
    assert not is_qos_0(0x32)
    assert not is_qos_0(0x40)
    assert peek(bytearray(topic + b"\0hi"), has_properties=True) == ("a/b", b"hi")
    assert peek(bytearray(topic + b"hi"), has_properties=False) == ("a/b", b"hi")
    assert peek(bytearray(topic + b"\x02\x01\x01hi"), has_properties=True) is None
    assert peek(bytearray(topic), has_properties=True) is None
    for cut in range(6):
        peek(bytearray(topic[:cut]), has_properties=cut % 2 == 0)


@given(
    st.text(st.characters(codec="utf-8"), max_size=90),
    st.integers(0, 300) | st.sampled_from([16_380, 2_097_150]),
    st.booleans(),
)
def test_written_message_is_read_again(topic: str, size: int, retain: bool) -> None:
    payload = bytes(n % 251 for n in range(size))
    for properties in (b"", b"\0"):
        packets = Packets()
        packets.feed(message_of_qos_0(Outgoing(topic, payload, 0, retain), properties))
        [(first, body)] = read(packets)
        assert is_qos_0(first)
        assert first & 1 == retain
        assert peek(bytearray(body), has_properties=bool(properties)) == (topic, payload)
