"""One request as its asker sees it: text that has come, text that was taken, and how it ended.

It reads deltas that come twice or with gaps, as they do after a broken connection, and makes up
from the final message what was missed.
"""

from __future__ import annotations

import asyncio

from edgecosine.errors import RequestError
from edgecosine.protocol.api.answers import FinalMessage, StreamPart
from edgecosine.protocol.api.request import Delta, Request


class ActiveRequest:
    """A request that was sent."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.since = asyncio.get_running_loop().time()
        self.num_sendings = 0
        self._num_taken = 0
        self._texts = [""] * request.n
        """Of each choice."""
        self._lengths_taken = [0] * request.n
        self._result: FinalMessage | RequestError | None = None
        self._news = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether the end has come and all text was taken."""
        if self._result is None:
            return False
        return isinstance(self._result, RequestError) or self._choice_with_text is None

    @property
    def _choice_with_text(self) -> int | None:
        """A choice with text that was not taken."""
        if not self.request.stream:
            return None
        lengths = enumerate(zip(self._texts, self._lengths_taken, strict=True))
        return next((choice for choice, (text, taken) in lengths if len(text) > taken), None)

    def take(self) -> Delta | None:
        """Text of one choice that came since the last call, if any came."""
        choice = self._choice_with_text
        if choice is None:
            return None
        text = self._texts[choice]
        delta = Delta(self._num_taken, text[self._lengths_taken[choice] :], choice)
        self._lengths_taken[choice] = len(text)
        self._num_taken += 1
        return delta

    def take_piece(self, piece: StreamPart) -> None:
        """Add a part; its index says where. What comes again changes nothing, gaps are left open,
        and a part that contradicts what came is believed, since it is a new gateway's."""
        choice = piece.choice or 0
        if piece.is_last or not 0 <= choice < len(self._texts):
            return
        text = self._texts[choice]
        if piece.index > len(text) or text.startswith(piece.text, piece.index):
            return
        self._texts[choice] = text[: piece.index] + piece.text
        self.wake()

    def finish(self, final: FinalMessage) -> None:
        """The final message came."""
        if self._result is None:
            self._result = final
            self._texts[: len(final.texts)] = final.texts[: self.request.n]
            self.wake()

    def fail(self, error: RequestError) -> None:
        """There will be no answer."""
        if self._result is None:
            self._result = error
            self.wake()

    def result(self) -> FinalMessage:
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
