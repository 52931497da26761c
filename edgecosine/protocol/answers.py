"""Answers as JSON: final messages, deltas and errors in OpenAI's shapes, written and read.

The acceptance figures have the shape of vLLM's `metrics.speculative_decoding`; ratios of nothing
are null. What only this cluster knows stands under `edgecosine`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from edgecosine.errors import Overloaded, RequestError
from edgecosine.protocol.request import Answer, Metrics, Request

_RATE_LIMITED = 429
_SERVER_FAULT = 500
_ERROR_TYPES: Mapping[int, str] = {408: "timeout_error", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True)
class Piece:
    """One part of a streamed answer, number `index` from 0; the last one says so."""

    index: int
    text: str
    is_last: bool


@dataclass(frozen=True, slots=True)
class Final:
    """A final message as its reader sees it; `body` is the whole object."""

    request_id: str
    text: str
    finish_reason: str
    body: Mapping[str, Any]


def render_final(request: Request, answer: Answer, *, created_s: int) -> bytes:
    """The whole answer; `created_s` in seconds since 1970."""
    metrics = answer.metrics
    body = {
        "id": request.request_id,
        "object": "chat.completion" if request.kind == "chat" else "text_completion",
        "created": created_s,
        "model": answer.model,
        "choices": [_choice(request, answer)],
        "usage": {
            "prompt_tokens": answer.num_prompt_tokens,
            "completion_tokens": answer.num_tokens,
            "total_tokens": answer.num_prompt_tokens + answer.num_tokens,
        },
        "metrics": {"speculative_decoding": speculation_figures(metrics)},
        "edgecosine": {
            "drafters": {name: asdict(share) for name, share in metrics.drafters.items()},
            "plan": metrics.plan,
            "seed": answer.seed,
            "queue_s": metrics.queue_s,
            "prefill_s": metrics.prefill_s,
            "decode_s": metrics.decode_s,
            **({"rounds": [asdict(times) for times in metrics.rounds]} if metrics.rounds else {}),
        },
    }
    return msgspec.json.encode(body)


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


def render_error(error: RequestError, request_id: str) -> bytes:
    """The OpenAI error object, and the request that it is about."""
    default = "server_error" if error.status >= _SERVER_FAULT else "invalid_request_error"
    fault: dict[str, Any] = {
        "message": error.message,
        "type": _ERROR_TYPES.get(error.status, default),
        "param": error.parameter,
        "code": error.code,
        "status": error.status,
    }
    if isinstance(error, Overloaded):
        fault["retry_after_s"] = error.retry_after_s
    return msgspec.json.encode({"id": request_id, "error": fault})


def render_piece(piece: Piece) -> bytes:
    """One part of a streamed answer."""
    return msgspec.json.encode({"i": piece.index, "delta": piece.text, "fin": piece.is_last})


def parse_piece(payload: bytes) -> Piece:
    """Inverse of `render_piece`.

    Raises ValueError.
    """
    match msgspec.json.decode(payload):
        case {"i": int(index), "delta": str(text), "fin": bool(is_last)}:
            return Piece(index, text, is_last)
    raise ValueError("not a part of an answer")


def parse_final(payload: bytes) -> Final:
    """Read a final message.

    Raises the RequestError that it carries, and ValueError when it is no final message.
    """
    body = msgspec.json.decode(payload)
    match body:
        case {"error": {"message": str(message)} as fault}:
            raise _error(message, fault)
        case {"id": str(request_id), "choices": [{"finish_reason": str(reason)} as choice, *_]}:
            match choice:
                case {"text": str(text)} | {"message": {"content": str(text)}}:
                    return Final(request_id, text, reason, body)
    raise ValueError("not a final message")


def _choice(request: Request, answer: Answer) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": answer.finish_reason,
        "logprobs": None,
    }
    if request.kind == "chat":
        choice["message"] = {"role": "assistant", "content": answer.text}
    else:
        choice["text"] = answer.text
    return choice


def _error(message: str, fault: Mapping[str, Any]) -> RequestError:
    status = fault.get("status")
    retry_after_s = fault.get("retry_after_s")
    if status == _RATE_LIMITED and isinstance(retry_after_s, int | float):
        return Overloaded(retry_after_s)
    parameter = fault.get("param")
    return RequestError(
        message,
        code=str(fault.get("code")),
        parameter=parameter if isinstance(parameter, str) else None,
        status=status if isinstance(status, int) else _SERVER_FAULT,
    )
