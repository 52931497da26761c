"""Converts OpenAI request bodies to `Request`, and back for our client.

The standard fields have their standard names. vLLM adds top_k, min_p, repetition_penalty,
min_tokens, stop_token_ids, ignore_eos and priority; EdgeCoSine adds id, client, reply_to,
deadline_ms, policy, trace and origins. Unknown fields are ignored, since OpenAI clients send many;
known fields that are not supported are refused. A null field counts as absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from edgecosine.errors import RequestError
from edgecosine.protocol.api.chat import (
    check_prompt,
    read_messages,
    read_prompt,
    read_token_prompt,
    render_message,
)
from edgecosine.protocol.api.json_fields import Fields, check_text, invalid, wrong_type
from edgecosine.protocol.api.request import (
    DEFAULT_POLICY,
    MAX_SEED,
    MIN_REPETITION_PENALTY,
    ChatMessage,
    Request,
    RequestKind,
    Sampling,
)
from edgecosine.protocol.api.response_format import (
    ResponseFormat,
    read_response_format,
    render_response_format,
)
from edgecosine.protocol.api.tools import ToolUse, read_tools, render_tools
from edgecosine.protocol.api.topics import MAX_TOPIC_BYTES, is_identifier

DEFAULT_MAX_TOKENS = 128
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKENS = 64
MAX_BIASES = 1024
MAX_CHOICES = 8
MAX_TOP_LOGPROBS_CHAT = 20
MAX_TOP_LOGPROBS_COMPLETION = 5
MAX_DEADLINE_MS = 7 * 24 * 3600 * 1000
MAX_PRIORITY = (1 << 31) - 1

_ONLY_ALLOWED: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
}


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Limits of a cluster. Without `models` any model name is accepted."""

    models: frozenset[str] = frozenset()
    max_tokens: int = 1 << 18


def parse_request(
    kind: RequestKind,
    body: Mapping[str, object],
    *,
    client_id: str,
    request_id: str,
    limits: RequestLimits,
    draw_seed: Callable[[], int],
) -> Request:
    """Convert a JSON body to a request; `draw_seed` supplies a missing seed.

    Raises RequestError, whose `parameter` names the field at fault.
    """
    fields = Fields(body)
    check_identifier("id", body.get("id"))
    check_identifier("client", body.get("client"))
    fields.text("reply_to", max_length=MAX_TOPIC_BYTES)
    _refuse_unsupported(body)
    echo = kind != "chat" and fields.boolean("echo", default=False)
    max_tokens, is_default_length = _max_tokens(fields, limits.max_tokens, least=0 if echo else 1)
    prompt: str | tuple[ChatMessage, ...] = ""
    tokens = () if kind == "chat" else read_token_prompt(body)
    if not tokens:
        prompt = read_messages(body) if kind == "chat" else read_prompt(body)
    return Request(
        client_id=client_id,
        request_id=request_id,
        kind=kind,
        prompt=prompt,
        prompt_tokens=tokens,
        echo=echo,
        max_tokens=max_tokens,
        is_default_length=is_default_length,
        sampling=_sampling(fields, max_tokens, draw_seed),
        stop=_stops(body.get("stop")),
        ignore_eos=fields.boolean("ignore_eos", default=False),
        policy=fields.text("policy", max_length=64) or DEFAULT_POLICY,
        stream=fields.boolean("stream", default=False),
        model=_model(fields, limits.models),
        deadline_s=_deadline_s(fields),
        top_logprobs=_top_logprobs(kind, fields),
        n=fields.integer("n", 1, low=1, high=MAX_CHOICES),
        priority=fields.integer("priority", 0, low=-MAX_PRIORITY, high=MAX_PRIORITY),
        trace=fields.boolean("trace", default=False),
        form=_form(fields, body),
        origins=fields.boolean("origins", default=False),
        counts_parts=stream_options(fields).boolean("continuous_usage_stats", default=False),
        tools=_tools(kind, body),
    )


def ask_request(
    text: str, *, client_id: str, request_id: str, limits: RequestLimits, seed: int
) -> Request:
    """Make a request from a plain prompt, with defaults for all other fields.

    Raises RequestError when the prompt is empty.
    """
    return Request(
        client_id=client_id,
        request_id=request_id,
        kind="ask",
        prompt=check_prompt("prompt", text),
        max_tokens=min(DEFAULT_MAX_TOKENS, limits.max_tokens),
        is_default_length=True,
        sampling=Sampling(seed=seed),
    )


def render_body(request: Request) -> bytes:
    """The JSON body from which `parse_request` makes the same request."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "id": request.request_id,
        "client": request.client_id,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "min_tokens": sampling.min_tokens,
        "stop_token_ids": sampling.stop_token_ids,
        "ignore_eos": request.ignore_eos,
        "n": request.n,
        "policy": request.policy,
        "priority": request.priority,
        "stream": request.stream,
        "trace": request.trace,
        "origins": request.origins,
    }
    if request.counts_parts:
        body["stream_options"] = {"continuous_usage_stats": True}
    if not request.is_default_length:
        body["max_tokens"] = request.max_tokens
    if request.echo:
        body["echo"] = True
    if isinstance(request.prompt, str):
        body["prompt"] = list(request.prompt_tokens) or request.prompt
    else:
        body["messages"] = [render_message(message) for message in request.prompt]
        body |= render_tools(request.tools)
    if request.top_logprobs is not None and request.kind == "chat":
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    elif request.top_logprobs is not None:
        body["logprobs"] = request.top_logprobs
    if request.stop:
        body["stop"] = request.stop
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if request.form is not None:
        body["response_format"] = render_response_format(request.form)
    if request.model is not None:
        body["model"] = request.model
    if math.isfinite(request.deadline_s):
        body["deadline_ms"] = request.deadline_s * 1000
    return msgspec.json.encode(body)


def check_identifier(name: str, value: object) -> str | None:
    """Return the identifier `value`; an integer counts as its digits.

    Raises RequestError.
    """
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SEED:
        value = str(value)
    if not isinstance(value, str) or not is_identifier(value):
        invalid(name, f"{name} is not 1 to 64 letters, digits, '_', '.' or '-'")
    return value


def stream_options(fields: Fields) -> Fields:
    """The object `stream_options`; empty where there is none.

    Raises RequestError.
    """
    options = fields.get("stream_options")
    if options is not None and not isinstance(options, dict):
        wrong_type("stream_options", "an object")
    return Fields(options or {})


def _refuse_unsupported(body: Mapping[str, object]) -> None:
    for name, allowed in _ONLY_ALLOWED.items():
        value = body.get(name)
        # False == 0 == 0.0 in Python, but these are different JSON values.
        if value is not None and not any(
            type(value) is type(each) and value == each for each in allowed
        ):
            shown = " or ".join(str(each) or "empty" for each in allowed)
            raise RequestError(
                f"{name} is supported only as {shown}",
                code="unsupported_value",
                parameter=name,
            )


def _form(fields: Fields, body: Mapping[str, object]) -> ResponseFormat | None:
    form = read_response_format(body)
    restriction = "tools" if fields.get("tools") else None if form is None else "response_format"
    for name in ("ignore_eos", "min_tokens"):
        if restriction and fields.get(name):
            # The form alone decides where an answer may end.
            raise RequestError(
                f"{name} and {restriction} exclude each other",
                code="unsupported_value",
                parameter=name,
            )
    return form


def _tools(kind: RequestKind, body: Mapping[str, object]) -> ToolUse | None:
    if kind != "chat" and body.get("tools"):
        raise RequestError("tools need a chat", code="unsupported_value", parameter="tools")
    for name in ("functions", "function_call"):
        if body.get(name) is not None:
            raise RequestError(
                f"{name} is not supported; use tools", code="unsupported_value", parameter=name
            )
    return read_tools(body)


def _sampling(fields: Fields, max_tokens: int, draw_seed: Callable[[], int]) -> Sampling:
    default = Sampling()
    return Sampling(
        temperature=fields.number("temperature", default.temperature, low=0.0, high=2.0),
        # -1 is how vLLM spells "no limit".
        top_k=max(0, fields.integer("top_k", default.top_k, low=-1, high=(1 << 31) - 1)),
        top_p=fields.number("top_p", default.top_p, low=0.0, high=1.0, above=True),
        min_p=fields.number("min_p", default.min_p, low=0.0, high=1.0),
        seed=_seed(fields, draw_seed),
        presence_penalty=fields.number("presence_penalty", 0.0, low=-2.0, high=2.0),
        frequency_penalty=fields.number("frequency_penalty", 0.0, low=-2.0, high=2.0),
        repetition_penalty=fields.number(
            "repetition_penalty", 1.0, low=MIN_REPETITION_PENALTY, high=10.0
        ),
        logit_bias=fields.biases("logit_bias", max_entries=MAX_BIASES, limit=100.0),
        min_tokens=fields.integer("min_tokens", 0, low=0, high=max_tokens),
        stop_token_ids=fields.tokens("stop_token_ids", max_entries=MAX_STOP_TOKENS),
    )


def _top_logprobs(kind: RequestKind, fields: Fields) -> int | None:
    """Number of alternatives, from two fields of a chat or one of a completion; None for none."""
    if kind == "chat":
        num_top = fields.integer("top_logprobs", 0, low=0, high=MAX_TOP_LOGPROBS_CHAT)
        if fields.boolean("logprobs", default=False):
            return num_top
        if num_top:
            invalid("top_logprobs", "top_logprobs needs logprobs to be true")
        return None
    if fields.get("top_logprobs"):
        invalid(
            "top_logprobs", "a completion gives the number by logprobs; top_logprobs is for chats"
        )
    if fields.get("logprobs") is None or fields.get("logprobs") is False:
        return None
    return fields.integer("logprobs", 0, low=0, high=MAX_TOP_LOGPROBS_COMPLETION)


def _seed(fields: Fields, draw_seed: Callable[[], int]) -> int:
    if fields.get("seed") is None:
        return draw_seed()
    # OpenAI's seeds are signed; both halves name the same 64 bits.
    return fields.integer("seed", 0, low=-(1 << 63), high=MAX_SEED) & MAX_SEED


def _max_tokens(fields: Fields, limit: int, *, least: int) -> tuple[int, bool]:
    """The limit of generated tokens, and whether it is the default."""
    given = [
        name for name in ("max_tokens", "max_completion_tokens") if fields.get(name) is not None
    ]
    values = {
        fields.integer(name, DEFAULT_MAX_TOKENS, low=least, high=limit)
        for name in given or ["max_tokens"]
    }
    if len(values) > 1:
        invalid("max_completion_tokens", "max_tokens and max_completion_tokens differ")
    return min(values.pop(), limit), not given


def _model(fields: Fields, served: frozenset[str]) -> str | None:
    model = fields.text("model", max_length=256)
    if model is not None and served and model not in served:
        raise RequestError(
            f"this model is not served here; served: {', '.join(sorted(served))}",
            code="model_not_found",
            parameter="model",
            status=404,
        )
    return model


def _deadline_s(fields: Fields) -> float:
    if fields.get("deadline_ms") is None:
        return math.inf
    return fields.number("deadline_ms", 0, low=0, high=MAX_DEADLINE_MS, above=True) / 1000


def _stops(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list):
        wrong_type("stop", "a string or a list of strings")
    if len(stops) > MAX_STOPS:
        invalid("stop", f"stop has at most {MAX_STOPS} entries")
    return tuple(check_text("stop", each, max_length=MAX_STOP_CHARACTERS) for each in stops)
