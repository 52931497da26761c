"""The answer so far, as tokens and as text: where it ends, and what may be shown of it.

Text that could be the beginning of a stop string is held back until it is certain.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgecosine.engine.text import Detokenizer, TextCodec
from edgecosine.protocol.request import FinishReason, Request


class Transcript:
    """Takes committed tokens one round at a time."""

    def __init__(self, request: Request, codec: TextCodec) -> None:
        self._request = request
        self._eos_tokens = frozenset[int]() if request.ignore_eos else codec.eos_tokens
        self._detokenizer = Detokenizer(codec)
        self._shown = 0
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return self._request.max_tokens - len(self.tokens)

    def push(self, tokens: Sequence[int]) -> str:
        """Add a round's tokens up to the end of the answer; returns the text to show."""
        for token in tokens:
            if token in self._eos_tokens:
                self.finish_reason = "stop"
                break
            self.tokens.append(token)
            self.text += self._detokenizer.push([token])
            if self._cut_at_stop():
                break
            if not self.room:
                self.finish_reason = "length"
                break
        if self.finish_reason and not self._is_cut:
            self.text += self._detokenizer.finish()
            self._cut_at_stop()
        return self._show()

    @property
    def _is_cut(self) -> bool:
        return len(self.text) < len(self._detokenizer.text)

    def _cut_at_stop(self) -> bool:
        found = [self.text.find(stop) for stop in self._request.stop]
        cuts = [at for at in found if at >= 0]
        if not cuts:
            return False
        self.text = self.text[: min(cuts)]
        self.finish_reason = "stop"
        return True

    def _show(self) -> str:
        end = len(self.text)
        if self.finish_reason is None:
            end -= self._held_back()
        piece = self.text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece

    def _held_back(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        for size in range(max(map(len, self._request.stop), default=1) - 1, 0, -1):
            tail = self.text[-size:]
            if any(stop.startswith(tail) for stop in self._request.stop):
                return size
        return 0
