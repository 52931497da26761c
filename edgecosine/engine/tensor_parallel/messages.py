"""What the ranks of a tensor-parallel model say to each other, and the sockets that carry it.

Orders go from rank 0 to the others, reports come back. Values of layers do not travel here but
through torch.distributed: collectives have time-outs, and a rank may wait for its next order
forever.
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
    """Load this model as rank `rank` of `size`; the ranks meet at the store on `port`."""

    options: LoadOptions
    rank: int
    size: int
    port: int
    timeout_s: float


class BeginServing(msgspec.Struct, frozen=True, tag=True):
    """All ranks have come to the same point."""


class RunForward(msgspec.Struct, frozen=True, tag=True):
    """Run a pass: int32 `table` [num_rows, columns], and the rows whose logits are wanted."""

    table: bytes
    num_rows: int
    keep: list[int]


class MoveSlots(msgspec.Struct, frozen=True, tag=True):
    """Copy cells of a slot."""

    slot: int
    source: list[int]
    target: list[int]


WorkerOrder = StartWorker | BeginServing | RunForward | MoveSlots


class WorkerStarted(msgspec.Struct, frozen=True, tag=True):
    """The process is there and has its libraries."""


class WorkerWaiting(msgspec.Struct, frozen=True, tag=True):
    """The rank waits for the others."""


class WorkerReady(msgspec.Struct, frozen=True, tag=True):
    """The model has passed its test; orders are awaited."""


class WorkerFailed(msgspec.Struct, frozen=True, tag=True):
    """The rank ends, for this reason."""

    reason: str


Report = WorkerStarted | WorkerWaiting | WorkerReady | WorkerFailed

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[WorkerOrder | Report] = msgspec.msgpack.Decoder(
    WorkerOrder | Report
)


class Channel:
    """Whole messages over a stream socket."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._buffer = FrameBuffer(MAX_MESSAGE_BYTES)

    def send(self, message: WorkerOrder | Report, timeout_s: float | None = None) -> None:
        """Raises OSError when the other side is gone or takes nothing for `timeout_s`."""
        payload = _encode(message)
        self._stream.settimeout(timeout_s)
        self._stream.sendall(len(payload).to_bytes(HEADER_BYTES, "big") + payload)

    def receive(self, timeout_s: float | None = None) -> WorkerOrder | Report:
        """The next message.

        Raises EOFError when the other side has ended, TimeoutError after `timeout_s` of silence.
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
        """The other side reads the end of the stream."""
        self._stream.close()
