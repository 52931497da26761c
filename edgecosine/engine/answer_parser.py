"""Divides the text of an answer into content, reasoning and tool calls, as it arrives. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edgecosine.engine.dialect import Dialect, ToolFormat
from edgecosine.protocol.api.channels import CONTENT, REASONING, Channel, Piece

_BLANK: Final = " \t\r\n"


class AnswerParser:
    """Divides the text of one answer into channels, in pieces of any length.

    The channels' texts do not depend on the pieces. Tool calls have the form of the dialect, since
    a grammar enforces it.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        in_reasoning: bool,
        call_id: Callable[[int], str],
        tools: ToolFormat | None = None,
    ) -> None:
        """`in_reasoning`: the prompt has opened the reasoning. `tools`: calls are read, and the
        number of each gives its id."""
        self._dialect, self._tools, self._call_id = dialect, tools, call_id
        self.divides = tools is not None or dialect.reasoning is not None
        """Whether channels follow each other; then blanks between them belong to none."""
        self._pending, self._blanks = "", ""
        self._pieces: list[Piece] = []
        self._state: Callable[[], bool] = self._content
        if self.divides:
            self._state = self._reasoning if in_reasoning else self._start
        self._is_empty = True
        """Whether the channel has no text yet."""
        self._called = tools.start + tools.begin if tools else ""
        self._channel = CONTENT
        self._scanner = _JsonScanner()
        self.num_calls = 0

    def feed(self, text: str) -> list[Piece]:
        """Add text; returns the pieces that are certain."""
        self._pending += text
        while self._pending and self._state():
            pass
        return self._taken()

    def finish(self) -> list[Piece]:
        """The rest, after the end of the text. An unfinished tag is text, unless it begins a call
        for certain."""
        rest, self._pending = self._pending, ""
        if self._tools is not None and self._tools.trigger in rest:
            rest = self._blanks = ""
        if self._state == self._reasoning:
            self._emit(REASONING, rest)
        elif self._state in {self._start, self._content}:
            self._emit(CONTENT, rest)
            if not self.num_calls:
                self._pieces.append((CONTENT, self._blanks))
        return self._taken()

    def _taken(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return [piece for piece in pieces if piece[1]]

    def _emit(self, channel: Channel, text: str) -> None:
        """Add text of the content or the reasoning, whose last blanks wait for more of it."""
        if self.divides:
            text = text.lstrip(_BLANK) if self._is_empty else self._blanks + text
            kept = text.rstrip(_BLANK)
            self._blanks, text = text[len(kept) :], kept
        self._is_empty = self._is_empty and not text
        self._pieces.append((channel, text))

    def _enter(self, state: Callable[[], bool]) -> bool:
        self._state, self._is_empty, self._blanks = state, True, ""
        return True

    def _start(self) -> bool:
        """Before the first text of the content, where its tags are expected."""
        text, dialect = self._pending.lstrip(_BLANK), self._dialect
        opening = dialect.reasoning[0] if dialect.reasoning else ""
        dropped = (dialect.content, dialect.turn.strip(_BLANK), *dialect.dropped)
        for tag in filter(None, (opening, self._called, *dropped)):
            if text.startswith(tag):
                self._pending = text.removeprefix(tag)
                if tag == self._called:
                    return self._enter(self._name)
                return self._enter(self._reasoning if tag == opening else self._start)
            if tag.startswith(text):
                return False
        return self._enter(self._content)

    def _reasoning(self) -> bool:
        assert self._dialect.reasoning is not None
        return bool(self._up_to(self._dialect.reasoning[1:], REASONING)) and self._enter(
            self._start
        )

    def _content(self) -> bool:
        has_calls = self._tools is not None and self._tools.has_text_before
        tags = (self._called if has_calls else "", *self._dialect.dropped)
        found = self._up_to(tuple(filter(None, tags)), CONTENT)
        return bool(found) and (found != self._called or self._enter(self._name))

    def _name(self) -> bool:
        assert self._tools is not None
        name, middle, rest = self._pending.partition(self._tools.middle)
        if not middle:
            return False
        self._channel = Channel("tool_call", self.num_calls, self._call_id(self.num_calls), name)
        self.num_calls += 1
        self._scanner = _JsonScanner()
        self._pending, self._state = rest, self._arguments
        return True

    def _arguments(self) -> bool:
        length = self._scanner.scan(self._pending)
        self._pieces.append((self._channel, self._pending[:length]))
        self._pending = self._pending[length:]
        if self._scanner.is_complete:
            self._state = self._after_call
        return self._scanner.is_complete

    def _after_call(self) -> bool:
        assert self._tools is not None
        following = self._tools.end + self._tools.between + self._tools.begin
        if self._tools.between and self._pending.startswith(following):
            self._pending = self._pending.removeprefix(following)
            return self._enter(self._name)
        # The grammar allows nothing but the end after the last call.
        return False

    def _up_to(self, tags: tuple[str, ...], channel: Channel) -> str:
        """Emit the text before the first of some tags and drop the tag, which is returned; empty
        while there is none, and then what may become one is kept."""
        places = [(at, -len(tag), tag) for tag in tags if (at := self._pending.find(tag)) >= 0]
        held = max((_overlap(self._pending, tag) for tag in tags), default=0)
        place, _, tag = min(places, default=(len(self._pending) - held, 0, ""))
        self._emit(channel, self._pending[:place])
        self._pending = self._pending[place + len(tag) :]
        return tag


class _JsonScanner:
    """Finds the end of one JSON object in pieces of text."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_string = self._is_escaped = False
        self.is_complete = False

    def scan(self, text: str) -> int:
        """Number of characters of `text` that belong to the object."""
        for at, letter in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_string:
                self._is_escaped = letter == "\\"
                self._is_string = letter != '"'
            elif letter == '"':
                self._is_string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if not self._depth:
                    self.is_complete = True
                    return at + 1
        return len(text)


def _overlap(text: str, tag: str) -> int:
    """The longest end of a text that is a beginning of a tag, but not all of it."""
    longest = min(len(text), len(tag) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(tag[:size])), 0)
