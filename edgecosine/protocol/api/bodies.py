"""The request bodies of the HTTP API as types, from which its description is generated.

`parse_request` reads the fields; these types name them, with their ranges.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from edgecosine.protocol.api.chat import MAX_MESSAGES
from edgecosine.protocol.api.openai import (
    MAX_BIASES,
    MAX_CHOICES,
    MAX_DEADLINE_MS,
    MAX_PRIORITY,
    MAX_STOP_CHARACTERS,
    MAX_STOP_TOKENS,
    MAX_STOPS,
    MAX_TOP_LOGPROBS_CHAT,
    MAX_TOP_LOGPROBS_COMPLETION,
)
from edgecosine.protocol.api.request import MIN_REPETITION_PENALTY
from edgecosine.protocol.api.tools import MAX_CALLS, MAX_TOOLS

_MAX_TOP_K: Final = (1 << 31) - 1
Token = Annotated[int, Meta(ge=0, lt=1 << 31)]
TokenPrompt = Annotated[list[Token], Meta(min_length=1)]
Stop = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Length = Annotated[int, Meta(ge=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class StreamOptions(msgspec.Struct, kw_only=True):
    """Which chunks of a stream have the usage: one at the end, or each."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ContentPart(msgspec.Struct, kw_only=True):
    """A part of a message; only text is supported."""

    type: str = "text"
    text: str


class MessageBody(msgspec.Struct, kw_only=True):
    """One turn of a conversation; `content` may be null for an assistant."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[dict[str, Any]], Meta(max_length=MAX_CALLS)] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class _Body(msgspec.Struct, kw_only=True):
    """The fields of chats and completions; null counts as absent."""

    model: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    max_tokens: Length | None = None
    max_completion_tokens: Length | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=_MAX_TOP_K)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63))] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=MIN_REPETITION_PENALTY, le=10)] | None = None
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=MAX_BIASES)] | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[Token], Meta(max_length=MAX_STOP_TOKENS)] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    best_of: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    deadline_ms: Annotated[float, Meta(gt=0, le=MAX_DEADLINE_MS)] | None = None
    priority: Annotated[int, Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    policy: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    trace: bool | None = None
    origins: bool | None = None
    response_format: dict[str, Any] | None = None


class ChatBody(_Body, kw_only=True):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[MessageBody], Meta(min_length=1, max_length=MAX_MESSAGES)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS_CHAT)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class CompletionBody(_Body, kw_only=True):
    """The body of `POST /v1/completions`."""

    prompt: (
        Annotated[str, Meta(min_length=1)]
        | Annotated[
            list[Annotated[str, Meta(min_length=1)] | Token | TokenPrompt], Meta(min_length=1)
        ]
    )
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    echo: bool | None = None
    suffix: Literal[""] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS_COMPLETION)] | bool | None = None


class TokenizeBody(msgspec.Struct, kw_only=True):
    """The body of `POST /tokenize`: a prompt, or the messages of a chat."""

    prompt: Annotated[str, Meta(min_length=1)] | None = None
    messages: Annotated[list[MessageBody], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = (
        None
    )
    add_special_tokens: bool | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """The body of `POST /detokenize`."""

    tokens: list[Token]


def field_names(body: type[msgspec.Struct]) -> frozenset[str]:
    """The fields of a body that have an effect."""
    return frozenset(field.name for field in msgspec.structs.fields(body))
