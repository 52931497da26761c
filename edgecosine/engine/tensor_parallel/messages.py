"""Messages between the ranks of a tensor-parallel model, and the sockets that carry them.

Rank 0 sends orders and receives reports. Values of layers go through torch.distributed instead,
whose collectives time out; a rank waits for its next order without a limit.
"""

from __future__ import annotations

import socket
from typing import Final

import msgspec

from edgecosine.engine.options import LoadOptions
from edgecosine.protocol.wire.framing import HEADER_BYTES, FrameBuffer

MAX_MESSAGE_BYTES: Final = 64 << 20
_CHUNK_BYTES: Final = 1 << 16


class StartWorker(msgspec.Struct, frozen=True, tag=True):
    """Load a model as rank `rank` of `size`; the group's store listens on `port`."""

    options: LoadOptions
    rank: int
    size: int
    port: int
    timeout_s: float


class BeginServing(msgspec.Struct, frozen=True, tag=True):
    """All ranks have reached the barrier."""


class RunForward(msgspec.Struct, frozen=True, tag=True):
    """Run a batch: int32 `table` [num_rows, columns], and the rows whose logits are computed."""

    table: bytes
    num_rows: int
    keep: list[int]


class MoveSlots(msgspec.Struct, frozen=True, tag=True):
    """Copy KV positions of a slot."""

    slot: int
    source: list[int]
    target: list[int]


class CopySlots(msgspec.Struct, frozen=True, tag=True):
    """Copy the KV positions start to end from slot to slot."""

    source: int
    target: int
    start: int
    end: int


WorkerOrder = StartWorker | BeginServing | RunForward | MoveSlots | CopySlots


class WorkerStarted(msgspec.Struct, frozen=True, tag=True):
    """The process runs and has imported its libraries."""


class WorkerWaiting(msgspec.Struct, frozen=True, tag=True):
    """The rank waits at the barrier."""


class WorkerReady(msgspec.Struct, frozen=True, tag=True):
    """The model has passed its self-test; the rank waits for orders."""


class WorkerFailed(msgspec.Struct, frozen=True, tag=True):
    """The rank ends for this reason."""

    reason: str


Report = WorkerStarted | WorkerWaiting | WorkerReady | WorkerFailed

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[WorkerOrder | Report] = msgspec.msgpack.Decoder(
    WorkerOrder | Report
)


class WorkerChannel:
    """Sends and receives messages over a stream socket."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._buffer = FrameBuffer(MAX_MESSAGE_BYTES)

    def send(self, message: WorkerOrder | Report, timeout_s: float | None = None) -> None:
        """Raises OSError when the other side has closed or reads nothing for `timeout_s`."""
        payload = _encode(message)
        self._stream.settimeout(timeout_s)
        self._stream.sendall(len(payload).to_bytes(HEADER_BYTES, "big") + payload)

    def receive(self, timeout_s: float | None = None) -> WorkerOrder | Report:
        """The next message.

        Raises EOFError when the other side has closed, TimeoutError after `timeout_s`.
        """
        self._stream.settimeout(timeout_s)
        while (payload := self._buffer.next_frame()) is None:
            try:
                data = self._stream.recv(_CHUNK_BYTES)
            except ConnectionError as error:
                raise EOFError from error
            if not data:
                raise EOFError
            self._buffer.feed(data)
        return _decoder.decode(payload)

    def close(self) -> None:
        """Close the socket; the other side reads the end of the stream."""
        self._stream.close()
