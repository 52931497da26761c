"""Renders and parses answers as JSON: final messages, deltas and errors in OpenAI's format.

The acceptance figures have the format of vLLM's `metrics.speculative_decoding`; a ratio without a
denominator is null. EdgeCoSine's own figures are under `edgecosine`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from edgecosine.errors import Refusal, RequestError
from edgecosine.protocol.api.channels import (
    CONTENT,
    REASONING,
    Channel,
    read_channel,
    render_channel,
)
from edgecosine.protocol.api.origins import Origins
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import (
    Answer,
    Choice,
    Metrics,
    ScoredToken,
    TokenLogprobs,
    Usage,
)
from edgecosine.protocol.api.tools import read_calls, render_calls

_SERVER_FAULT = 500
_LEAST_LOGPROB = -9999.0
"""Replaces minus infinity, which JSON cannot express; vLLM's value."""
_ERROR_TYPES: Mapping[int, str] = {408: "timeout_error", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True)
class StreamPart:
    """One part of a streamed answer.

    `index` is the number of characters (Unicode code points) of the text before this part. After a
    restart, parts may repeat or be divided differently: a reader keeps `text[:index] + part`. With
    several choices, `choice` is the index of the text's choice. Each channel of a choice has a text
    of its own. The last part's index counts the characters of all texts.
    """

    index: int
    text: str
    is_last: bool
    choice: int | None = None
    channel: Channel = CONTENT
    origins: Origins = ()
    """Sources of the text; empty unless the request asks for it."""
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class FinalMessage:
    """A parsed final message; `body` is the whole JSON object."""

    request_id: str
    texts: tuple[str, ...]
    """Content of each choice."""
    finish_reason: str
    """Finish reason of the first choice."""
    body: Mapping[str, Any]
    others: tuple[Mapping[Channel, str], ...] = ()
    """Reasoning and arguments of tool calls of each choice."""

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.texts[0]


def render_final(request: Request, answer: Answer, *, created_s: int) -> bytes:
    """The final message as JSON; `created_s` is in seconds since 1970."""
    metrics = answer.metrics
    body = {
        "id": request.request_id,
        "object": "chat.completion" if request.kind == "chat" else "text_completion",
        "created": created_s,
        "model": answer.model,
        "system_fingerprint": answer.identity or None,
        "choices": [_choice(request, *numbered) for numbered in enumerate(answer.choices)],
        "usage": render_usage(Usage(answer.num_prompt_tokens, answer.num_tokens)),
        "metrics": {"speculative_decoding": speculation_figures(metrics)},
        "edgecosine": {
            "drafters": {name: asdict(share) for name, share in metrics.drafters.items()},
            "plan": metrics.plan,
            "speculative_rounds": metrics.num_speculative_rounds,
            "ahead_rounds": metrics.num_ahead_rounds,
            "seed": answer.seed,
            "queue_s": metrics.queue_s,
            "prefill_s": metrics.prefill_s,
            "decode_s": metrics.decode_s,
            **_rounds(metrics),
            **_committee(metrics),
        },
    }
    return msgspec.json.encode(body)


def render_usage(usage: Usage) -> dict[str, int]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_tokens,
    }


def _committee(metrics: Metrics) -> dict[str, Any]:
    if metrics.committee is None:
        return {}
    use = metrics.committee
    return {
        "exact": use.is_exact,
        "committee": [asdict(part) for part in use.parts],
        "why": use.why,
        "verify_s": use.round_s,
        "slowest_member_s": use.slowest_s,
        "bytes_per_position": use.num_bytes / max(1, use.num_rows),
        "drawn": use.num_drawn,
        "asked_back": use.num_asked_back,
        "dense_rows": use.num_dense,
        "lost_mass": use.lost,
        "differing_at_most": use.differing,
    }


def _rounds(metrics: Metrics) -> dict[str, Any]:
    if not metrics.rounds:
        return {}
    rounds = [asdict(times) for times in metrics.rounds]
    return {"began_s": metrics.began_s, "rounds": rounds}


def speculation_figures(metrics: Metrics) -> dict[str, Any]:
    """The acceptance figures of one answer.

    The histogram's length is the longest draft path plus one, its sum the number of passes, and its
    weighted sum the number of accepted draft tokens.
    """
    num_steps = metrics.num_rounds
    num_accepted = metrics.num_accepted_tokens
    num_draft = metrics.num_draft_tokens
    return {
        "mean_acceptance_length": 1 + num_accepted / num_steps if num_steps else None,
        "draft_acceptance_rate": num_accepted / num_draft if num_draft else None,
        "acceptance_histogram": list(metrics.acceptance_histogram),
        "num_spec_steps": num_steps,
        "num_accepted_draft_tokens": num_accepted,
        "num_draft_tokens": num_draft,
        "num_spec_tokens": len(metrics.acceptance_histogram) - 1,
    }


def render_error(error: RequestError | Refusal, request_id: str) -> bytes:
    """OpenAI's error object with the request's id, as JSON."""
    default = "server_error" if error.status >= _SERVER_FAULT else "invalid_request_error"
    fault: dict[str, Any] = {
        "message": error.message,
        "type": _ERROR_TYPES.get(error.status, default),
        "param": error.parameter,
        "code": error.code,
        "status": error.status,
    }
    if error.retry_after_s is not None:
        fault["retry_after_s"] = error.retry_after_s
    return msgspec.json.encode({"id": request_id, "error": fault})


def render_piece(piece: StreamPart) -> bytes:
    """One part of a streamed answer, as JSON."""
    body: dict[str, Any] = {"i": piece.index, "delta": piece.text, "fin": piece.is_last}
    if piece.choice is not None:
        body["choice"] = piece.choice
    body |= render_channel(piece.channel)
    if piece.origins:
        body["origins"] = piece.origins
    if piece.usage is not None:
        body["usage"] = render_usage(piece.usage)
    return msgspec.json.encode(body)


def parse_piece(payload: bytes) -> StreamPart:
    """Inverse of `render_piece`.

    Raises ValueError.
    """
    match _read(payload):
        case {"i": int(index), "delta": str(text), "fin": bool(is_last), **more}:
            choice = more.get("choice")
            number = choice if isinstance(choice, int) else None
            channel, origins = read_channel(more), _origins(more)
            usage = _usage_of(more.get("usage"))
            return StreamPart(index, text, is_last, number, channel, origins, usage)
    raise ValueError("not a part of an answer")


def _origins(body: Mapping[Any, Any]) -> Origins:
    """Raises ValueError."""
    return msgspec.convert(body.get("origins", ()), Origins)


def parse_final(payload: bytes) -> FinalMessage:
    """Parse a final message.

    Raises the RequestError that it carries, and ValueError when it is no final message.
    """
    body = _read(payload)
    match body:
        case {"error": {"message": str(message)} as fault}:
            raise _error(message, fault)
        case {"id": str(request_id), "choices": [{"finish_reason": str(reason)}, *_] as choices}:
            others = tuple(map(_channels_of, choices))
            texts = tuple(each.pop(CONTENT) for each in others)
            return FinalMessage(request_id, texts, reason, body, others)
    raise ValueError("not a final message")


def _usage_of(usage: object) -> Usage | None:
    match usage:
        case {"prompt_tokens": int(num_prompt), "completion_tokens": int(num_tokens)}:
            return Usage(num_prompt, num_tokens)
    return None


def _read(payload: bytes) -> Any:
    try:
        return msgspec.json.decode(payload)
    except RecursionError as error:
        raise ValueError("the message is nested too deeply") from error


def _channels_of(choice: object) -> dict[Channel, str]:
    match choice:
        case {"text": str(text)}:
            return {CONTENT: text}
        case {"message": {"content": str() | None as content, **more}}:
            texts = {CONTENT: content or ""}
            if isinstance(reasoning := more.get("reasoning"), str):
                texts[REASONING] = reasoning
            calls = read_calls("tool_calls", more.get("tool_calls"))
            for number, call in enumerate(calls):
                texts[Channel("tool_call", number, call.call_id, call.name)] = call.arguments
            return texts
    raise ValueError("not a choice")


def _choice(request: Request, index: int, choice: Choice) -> dict[str, Any]:
    body: dict[str, Any] = {"index": index, "finish_reason": choice.finish_reason}
    if request.kind == "chat":
        body["message"] = _message(choice)
        render = _chat_logprobs
    else:
        body["text"] = choice.text
        render = _completion_logprobs
    body["logprobs"] = None if choice.logprobs is None else render(choice.logprobs)
    return body


def _message(choice: Choice) -> dict[str, Any]:
    """The assistant's message. vLLM and others differ in the name of the reasoning: it has both."""
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.reasoning:
        message |= {"reasoning": choice.reasoning, "reasoning_content": choice.reasoning}
    if choice.calls:
        message |= {"content": choice.text or None, "tool_calls": render_calls(choice.calls)}
    return message


def _chat_logprobs(logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
    content = [
        {**_scored(each.token), "top_logprobs": [_scored(token) for token in each.top]}
        for each in logprobs
    ]
    return {"content": content, "refusal": None}


def _scored(token: ScoredToken) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": _finite(token.logprob),
        "bytes": list(token.utf8),
    }


def _completion_logprobs(logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
    return {
        "tokens": [each.token.text for each in logprobs],
        "token_logprobs": [_finite(each.token.logprob) for each in logprobs],
        "top_logprobs": [_top(each) for each in logprobs],
        "text_offset": [each.text_offset for each in logprobs],
    }


def _top(logprobs: TokenLogprobs) -> dict[str, float] | None:
    """Log-probabilities by text, including the generated token; the highest one of equal texts."""
    if logprobs.token.logprob is None:
        return None
    scored = [(each.text, _finite(each.logprob)) for each in (*logprobs.top, logprobs.token)]
    best = dict(sorted(scored, key=lambda each: each[1] or 0.0))
    return {text: logprob for text, logprob in reversed(best.items()) if logprob is not None}


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, _LEAST_LOGPROB)


def _error(message: str, fault: Mapping[str, Any]) -> RequestError:
    status = fault.get("status")
    retry_after_s = fault.get("retry_after_s")
    parameter = fault.get("param")
    return RequestError(
        message,
        code=str(fault.get("code")),
        parameter=parameter if isinstance(parameter, str) else None,
        status=status if isinstance(status, int) else _SERVER_FAULT,
        retry_after_s=retry_after_s if isinstance(retry_after_s, int | float) else None,
    )
