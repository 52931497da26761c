"""Frames come out as they went in, however the stream is cut; a large one is refused unread."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.errors import LocalProtocolError, RemoteProtocolError
from edgecosine.protocol.wire.framing import MAX_FRAME_BYTES, FrameBuffer, frame


def drain(buffer: FrameBuffer) -> list[bytes]:
    return list(iter(buffer.next_frame, None))


@given(st.lists(st.binary(max_size=80), max_size=12), st.lists(st.integers(1, 40), min_size=1))
def test_frames_do_not_depend_on_the_division_of_the_stream(
    payloads: list[bytes], sizes: list[int]
) -> None:
    stream = b"".join(frame(payload) for payload in payloads)
    buffer, received, step = FrameBuffer(), [], 0
    while stream:
        size = sizes[step % len(sizes)]
        buffer.feed(stream[:size])
        stream, step = stream[size:], step + 1
        received += drain(buffer)
    assert received == payloads
    assert len(buffer) == 0


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_buffer_never_holds_more_than_a_frame(chunks: list[bytes]) -> None:
    buffer = FrameBuffer(max_frame_bytes=100)
    for chunk in chunks:
        buffer.feed(chunk)
        assert len(buffer) <= 104 + len(chunk)
        try:
            drain(buffer)
        except RemoteProtocolError:
            assert len(buffer) == 0


def test_too_long_frame_is_refused_by_its_length() -> None:
    buffer = FrameBuffer()
    buffer.feed(frame(b"good") + b"\xff\xff\xff\xff")
    assert buffer.next_frame() == b"good"
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="4294967295 bytes; the cap is 262144"):
            buffer.next_frame()
        buffer.feed(b"more" * 1000)
        assert len(buffer) == 0


def test_limit_may_be_raised_between_two_frames() -> None:
    buffer = FrameBuffer(max_frame_bytes=4)
    buffer.feed(frame(b"abcd") + frame(b"abcdefgh"))
    assert buffer.next_frame() == b"abcd"
    buffer.max_frame_bytes = 8
    assert buffer.next_frame() == b"abcdefgh"


def test_frame_in_many_pieces_is_copied_in_linear_time() -> None:
    payload = bytes(MAX_FRAME_BYTES)
    stream, buffer = memoryview(frame(payload)), FrameBuffer(MAX_FRAME_BYTES)
    frames: list[bytes] = []
    for start in range(0, len(stream), 64):
        buffer.feed(bytes(stream[start : start + 64]))
        frames += drain(buffer)
    assert frames == [payload]


def test_frame_that_a_peer_would_refuse_is_not_sent() -> None:
    with pytest.raises(LocalProtocolError, match="frame cap"):
        frame(bytes(MAX_FRAME_BYTES + 1))
