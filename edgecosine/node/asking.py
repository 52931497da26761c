"""One request as its asker sees it: text that has come, text that was taken, and how it ended.

It reads deltas that come twice or with gaps, as they do after a broken connection, and makes up
from the final message what was missed.
"""

from __future__ import annotations

import asyncio

from edgecosine.errors import RequestError
from edgecosine.protocol.answers import Final, Piece
from edgecosine.protocol.request import Request


class Asking:
    """A request that was sent."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.since = asyncio.get_running_loop().time()
        self.num_sendings = 0
        self.num_taken = -1
        """Index of the text that was taken last."""
        self._text = ""
        self._length_taken = 0
        self._next_piece = 0
        self._result: Final | RequestError | None = None
        self._news = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether the end has come and all text was taken."""
        if self._result is None:
            return False
        return isinstance(self._result, RequestError) or not self._has_text

    @property
    def _has_text(self) -> bool:
        return self.request.stream and len(self._text) > self._length_taken

    def take_text(self) -> str:
        """The text that came since the last call."""
        if not self._has_text:
            return ""
        text = self._text[self._length_taken :]
        self._length_taken = len(self._text)
        self.num_taken += 1
        return text

    def take_piece(self, piece: Piece) -> None:
        """Add a part. Number 0 begins anew, since a new gateway begins anew; gaps are left open."""
        if piece.index == 0:
            self._text, self._next_piece = "", 0
        if piece.index == self._next_piece:
            self._text += piece.text
            self._next_piece += 1
            self.wake()

    def finish(self, final: Final) -> None:
        """The final message came."""
        if self._result is None:
            self._result = final
            self._text = final.text
            self.wake()

    def fail(self, error: RequestError) -> None:
        """There will be no answer."""
        if self._result is None:
            self._result = error
            self.wake()

    def result(self) -> Final:
        """The final message.

        Raises the RequestError that came instead.
        """
        if isinstance(self._result, RequestError):
            raise self._result
        if self._result is None:
            raise RuntimeError("the request is still at work")
        return self._result

    def wake(self) -> None:
        """Something has happened."""
        self._news.set()

    async def news(self) -> None:
        """Wait until something happens."""
        await self._news.wait()
        self._news.clear()
