"""Renders a streamed answer as OpenAI's chunks. Pure.

The chunks of an answer, folded by an OpenAI client, give the final message: role, contents, finish
reasons, and the usage where it is requested.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgecosine.protocol.api.answers import FinalMessage, render_usage
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Delta

Chunk = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChunkRenderer:
    """Renders the chunks of one request.

    request_id   the id in the chunks
    created_s    in seconds since 1970
    usage        whether the chunks have a field for the usage
    first_index  index of the request's first choice, where the answer joins several requests
    fingerprint  digest of all that determines the text but the request; None if unknown
    """

    request: Request
    request_id: str
    model: str
    created_s: int
    usage: bool = False
    first_index: int = 0
    fingerprint: str | None = None
    _called: set[tuple[int, int]] = field(default_factory=set)
    """Tool calls whose name was sent, by choice and index."""

    def first(self) -> Iterator[Chunk]:
        """The chunks before all text: in a chat, the role of each choice."""
        if self._is_chat:
            for index in range(self.request.n):
                yield self._chunk(index, {"role": "assistant", "content": ""})

    def delta(self, delta: Delta) -> Iterator[Chunk]:
        """The chunks of a piece of text; of a tool call, its name comes first, in its own chunk."""
        for content in self._contents(delta):
            chunk = self._chunk(delta.choice, content)
            if delta.origins:
                chunk["choices"][0]["origins"] = delta.origins
            yield chunk if delta.usage is None else chunk | {"usage": render_usage(delta.usage)}

    def _contents(self, delta: Delta) -> Iterator[Mapping[str, object] | str]:
        channel = delta.channel
        match channel.kind:
            case _ if not self._is_chat:
                yield delta.text
            case "content":
                yield {"content": delta.text}
            case "reasoning":
                yield {"reasoning": delta.text, "reasoning_content": delta.text}
            case "tool_call":
                if (delta.choice, channel.index) not in self._called:
                    self._called.add((delta.choice, channel.index))
                    function = {"name": channel.name, "arguments": ""}
                    named = {"id": channel.call_id, "type": "function", "function": function}
                    yield {"tool_calls": [{"index": channel.index, **named}]}
                arguments = {"arguments": delta.text}
                yield {"tool_calls": [{"index": channel.index, "function": arguments}]}

    def last(self, final: FinalMessage) -> Iterator[Chunk]:
        """The chunks after all text: finish reasons and log-probabilities."""
        for choice in final.body["choices"]:
            yield self._chunk(
                choice["index"],
                {} if self._is_chat else "",
                logprobs=choice["logprobs"],
                finish_reason=choice["finish_reason"],
            )

    def total(self, answer: Mapping[str, Any]) -> Chunk:
        """The chunk with the usage of the whole answer."""
        more = ("usage", "metrics", "edgecosine")
        return self._body([]) | {name: answer[name] for name in more if name in answer}

    @property
    def _is_chat(self) -> bool:
        return self.request.kind == "chat"

    def _chunk(
        self,
        index: int,
        content: Mapping[str, object] | str,
        logprobs: object = None,
        finish_reason: str | None = None,
    ) -> Chunk:
        choice = {
            "index": self.first_index + index,
            "delta" if self._is_chat else "text": content,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return self._body([choice])

    def _body(self, choices: list[Chunk]) -> Chunk:
        body: Chunk = {
            "id": self.request_id,
            "object": "chat.completion.chunk" if self._is_chat else "text_completion",
            "created": self.created_s,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }
        return body | {"usage": None} if self.usage else body
