"""The parts of an answer that a piece of its text may belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal


@dataclass(frozen=True, slots=True)
class Channel:
    """The content of an answer, its reasoning, or the arguments of one tool call.

    index, call_id and name belong to a tool call: its number in the answer, its id, the tool.
    """

    kind: Literal["content", "reasoning", "tool_call"] = "content"
    index: int = 0
    call_id: str = ""
    name: str = ""


CONTENT: Final = Channel()
REASONING: Final = Channel("reasoning")

Piece = tuple[Channel, str]
"""Text of one channel."""


def render_channel(channel: Channel) -> dict[str, Any]:
    """The fields by which JSON names a channel; none for the content."""
    if channel.kind == "tool_call":
        call = {"index": channel.index, "id": channel.call_id, "name": channel.name}
        return {"channel": channel.kind, "tool_call": call}
    return {} if channel == CONTENT else {"channel": channel.kind}


def read_channel(body: Mapping[Any, Any]) -> Channel:
    """Inverse of `render_channel`.

    Raises ValueError.
    """
    match body:
        case {
            "channel": "tool_call",
            "tool_call": {"index": int(index), "id": str(call_id), "name": str(name)},
        }:
            return Channel("tool_call", index, call_id, name)
        case {"channel": "reasoning"}:
            return REASONING
        case {"channel": _}:
            raise ValueError("an unknown channel")
    return CONTENT
