"""The answers of the HTTP API as types, from which its description is generated."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class CompletionUsage(msgspec.Struct, kw_only=True):
    """Tokens of an answer and its prompt."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(msgspec.Struct, kw_only=True):
    """The message of a chat's answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    """One answer to a chat."""

    index: int
    message: AnswerMessage
    finish_reason: str
    logprobs: dict[str, Any] | None


class CompletionChoice(msgspec.Struct, kw_only=True):
    """One completion of a prompt."""

    index: int
    text: str
    finish_reason: str
    logprobs: dict[str, Any] | None


class _Answer(msgspec.Struct, kw_only=True):
    """The fields of both answers; `metrics` and `edgecosine` describe one request."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None
    usage: CompletionUsage
    metrics: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    edgecosine: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class ChatAnswer(_Answer, kw_only=True):
    """The answer to a chat."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class CompletionAnswer(_Answer, kw_only=True):
    """The completions of all prompts."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class Model(msgspec.Struct, kw_only=True):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int
    system_fingerprint: str | None
    committee: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET


class ModelList(msgspec.Struct, kw_only=True):
    """All models that are served."""

    object: Literal["list"]
    data: list[Model]


class Tokens(msgspec.Struct, kw_only=True):
    """Token ids, their number, and the longest sequence of the model."""

    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizedText(msgspec.Struct, kw_only=True):
    """The text of tokens."""

    prompt: str


class TokenizerInfo(msgspec.Struct, kw_only=True):
    """Special tokens and the chat template."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None


class Health(msgspec.Struct, kw_only=True):
    """Requests are taken."""

    status: Literal["ok"]


class Version(msgspec.Struct, kw_only=True):
    """The version of the server."""

    version: str


class Error(msgspec.Struct, kw_only=True):
    """Why a request failed; `param` names the field at fault."""

    message: str
    type: str
    param: str | None
    code: str
    status: int
    retry_after_s: float | msgspec.UnsetType = msgspec.UNSET


class ErrorAnswer(msgspec.Struct, kw_only=True):
    """An error."""

    error: Error
    id: str
