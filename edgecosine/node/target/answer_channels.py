"""The text of one answer, divided into its channels."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from edgecosine.engine.answer_parser import AnswerParser
from edgecosine.engine.dialect import PLAIN, Dialect
from edgecosine.protocol.api.channels import CONTENT, REASONING, Channel, Piece
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Choice
from edgecosine.protocol.api.tools import ToolCall


class AnswerChannels:
    """Takes the final text of an answer in any pieces."""

    def __init__(
        self, request: Request, dialect: Dialect = PLAIN, *, in_reasoning: bool = False
    ) -> None:
        """`in_reasoning`: the prompt has opened the reasoning."""
        self._key = request.key
        self._parser = AnswerParser(
            dialect,
            in_reasoning=in_reasoning,
            call_id=self._call_id,
            tools=dialect.tools if request.tools else None,
        )
        self._texts: dict[Channel, str] = {CONTENT: ""}

    @property
    def divides(self) -> bool:
        """Whether the text may have more than one channel."""
        return self._parser.divides

    def push(self, text: str, *, is_last: bool) -> list[Piece]:
        """Add text; returns the pieces that became certain, neighbours of different channels."""
        pieces = self._parser.feed(text)
        if is_last:
            pieces += self._parser.finish()
        joined = list[Piece]()
        for channel, piece in pieces:
            self._texts[channel] = self._texts.get(channel, "") + piece
            if joined and joined[-1][0] == channel:
                joined[-1] = channel, joined[-1][1] + piece
            else:
                joined.append((channel, piece))
        return joined

    def divide(self, choice: Choice) -> Choice:
        """The complete answer, its text divided."""
        calls = tuple(
            ToolCall(channel.call_id, channel.name, text)
            for channel, text in self._texts.items()
            if channel.kind == "tool_call"
        )
        has_called = calls and choice.finish_reason == "stop"
        return replace(
            choice,
            text=self._texts[CONTENT],
            reasoning=self._texts.get(REASONING, ""),
            calls=calls,
            finish_reason="tool_calls" if has_called else choice.finish_reason,
        )

    def _call_id(self, number: int) -> str:
        """The id of a call, the same after a restart in the middle of the answer."""
        digest = hashlib.blake2b(f"{self._key}/{number}".encode(), digest_size=12)
        return f"call_{digest.hexdigest()}"
