"""A client that only reads streamed completions over one HTTP connection, so that its own time does
not count as the server's."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from edgecosine.errors import LabError

_EVENT = b"data: "
_LONGEST_LINE = 1 << 22


@dataclass(frozen=True, slots=True)
class StreamTimes:
    """Times of one streamed answer, in seconds since its request was sent."""

    first_text_s: float
    last_text_s: float
    num_tokens: int
    text: str

    def record(self) -> dict[str, Any]:
        """The times and the number of tokens, for a report."""
        return {
            "first_text_s": self.first_text_s,
            "last_text_s": self.last_text_s,
            "num_tokens": self.num_tokens,
        }

    @property
    def token_s(self) -> float:
        """Mean seconds between tokens, from the first text to the last."""
        return (self.last_text_s - self.first_text_s) / max(1, self.num_tokens - 1)


class StreamClient:
    """`async with StreamClient(host, port) as client: await client.complete(body)`."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(
            self._host, self._port, limit=_LONGEST_LINE
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def complete(self, body: dict[str, Any]) -> StreamTimes:
        """Request a streamed completion and read it to its end; returns its times.

        Raises LabError when the request is refused.
        """
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        content = json.dumps(streamed).encode()
        begun = time.perf_counter()
        self._writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            + f"content-length: {len(content)}\r\n\r\n".encode()
            + content
        )
        text, moments, num_tokens = "", list[float](), 0
        async for event in self._events():
            chunk = json.loads(event)
            if choices := chunk["choices"]:
                if piece := choices[0]["text"]:
                    moments.append(time.perf_counter())
                    text += piece
            else:
                num_tokens = chunk["usage"]["completion_tokens"]
        return StreamTimes(moments[0] - begun, moments[-1] - begun, num_tokens, text)

    async def _events(self) -> AsyncIterator[bytes]:
        """The data of the events of one response up to `[DONE]`."""
        status = await self._reader.readline()
        while (await self._reader.readline()).strip():
            pass
        if b" 200 " not in status:
            raise LabError(f"the request was refused: {status.decode().strip()}")
        # Each event is one chunk of the body; a chunk of length 0 ends it.
        while size := int(await self._reader.readline(), 16):
            chunk = await self._reader.readexactly(size + 2)
            if chunk.startswith(_EVENT) and not chunk.startswith(b"data: [DONE]"):
                yield chunk[len(_EVENT) :].strip()
        await self._reader.readline()
