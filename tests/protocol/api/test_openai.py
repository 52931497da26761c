"""Request bodies: what is written is read again, and nothing but RequestError comes of the rest."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecosine.errors import RequestError
from edgecosine.protocol.api.json_fields import read_object, read_text
from edgecosine.protocol.api.openai import (
    DEFAULT_MAX_TOKENS,
    RequestLimits,
    ask_request,
    parse_request,
    render_body,
)
from edgecosine.protocol.api.request import MAX_SEED, ChatMessage, Request, RequestKind, Sampling

LIMITS = RequestLimits(models=frozenset({"tiny"}), max_tokens=512)
DRAWN = 77


def read(body: bytes | dict[str, Any], kind: RequestKind = "completion") -> Request:
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_request(
        kind,
        read_object(payload),
        client_id="cli",
        request_id="1",
        limits=LIMITS,
        draw_seed=lambda: DRAWN,
    )


def refusal(body: bytes | dict[str, Any], kind: RequestKind = "completion") -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(body, kind)
    return caught.value


def test_defaults_are_greedy_and_the_seed_is_drawn() -> None:
    request = read({"prompt": "x"})
    assert request.sampling == Sampling(seed=DRAWN)
    assert request.max_tokens == DEFAULT_MAX_TOKENS
    assert request.deadline_s == math.inf
    assert not request.stream
    assert not request.trace


def test_null_and_unknown_fields_are_ignored() -> None:
    body = {"prompt": "x", "temperature": None, "stop": None, "user": "me", "store": True}
    assert read(body) == read({"prompt": "x"})


def test_every_field_is_read() -> None:
    request = read(
        {
            "prompt": ["x"],
            "model": "tiny",
            "max_completion_tokens": 9,
            "temperature": 1,
            "top_k": -1,
            "top_p": 0.5,
            "min_p": 0.1,
            "seed": -1,
            "presence_penalty": -2,
            "frequency_penalty": 2,
            "repetition_penalty": 1.1,
            "logit_bias": {"7": -100, "3": 1.5},
            "stop": "end",
            "ignore_eos": True,
            "stream": True,
            "deadline_ms": 1500,
            "n": 8,
            "logprobs": 5,
            "min_tokens": 9,
            "stop_token_ids": [4, 0],
            "trace": True,
            "response_format": {"type": "text"},
        }
    )
    assert request == Request(
        client_id="cli",
        request_id="1",
        kind="completion",
        prompt="x",
        model="tiny",
        max_tokens=9,
        sampling=Sampling(
            temperature=1.0,
            top_k=0,
            top_p=0.5,
            min_p=0.1,
            seed=MAX_SEED,
            presence_penalty=-2.0,
            frequency_penalty=2.0,
            repetition_penalty=1.1,
            logit_bias=((3, 1.5), (7, -100.0)),
            min_tokens=9,
            stop_token_ids=(4, 0),
        ),
        stop=("end",),
        ignore_eos=True,
        stream=True,
        deadline_s=1.5,
        top_logprobs=5,
        n=8,
        trace=True,
    )


@pytest.mark.parametrize(
    ("kind", "fields", "num_top"),
    [
        ("completion", {}, None),
        ("completion", {"logprobs": None}, None),
        ("completion", {"logprobs": False}, None),
        ("completion", {"logprobs": 0}, 0),
        ("completion", {"logprobs": 5, "top_logprobs": 0}, 5),
        ("chat", {}, None),
        ("chat", {"logprobs": False, "top_logprobs": 0}, None),
        ("chat", {"logprobs": True}, 0),
        ("chat", {"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_log_probabilities_have_the_fields_of_each_kind(
    kind: RequestKind, fields: dict[str, Any], num_top: int | None
) -> None:
    body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}], **fields}
    assert read(body, kind).top_logprobs == num_top


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": True}, "top_logprobs"),
    ],
)
def test_invalid_number_of_log_probabilities_is_refused_in_a_chat(
    fields: dict[str, Any], parameter: str
) -> None:
    error = refusal({"messages": [{"role": "user", "content": "x"}], **fields}, "chat")
    assert error.parameter == parameter


def test_chat_content_may_come_in_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": parts}]}
    turns = (ChatMessage("system", ""), ChatMessage("user", "ab"))
    assert read(body, "chat").prompt == turns


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"prompt": None}, "missing_required_parameter"),
        ({"prompt": ""}, "empty_prompt"),
        ({"prompt": 5}, "invalid_type"),
        ({"prompt": {"a": 1}}, "invalid_type"),
        ({"prompt": []}, "invalid_value"),
        ({"prompt": ["a", "b"]}, "invalid_value"),
        ({"prompt": [1, -2]}, "invalid_value"),
        ({"prompt": [1, "a"]}, "invalid_type"),
        ({"prompt": [[1], [2]]}, "invalid_value"),
        ({"prompt": "\ud800"}, "invalid_value"),
        ({"max_tokens": 0}, "integer_below_min_value"),
        ({"max_tokens": 10**9}, "integer_above_max_value"),
        ({"max_tokens": 1.5}, "invalid_type"),
        ({"max_tokens": True}, "invalid_type"),
        ({"max_tokens": "9"}, "invalid_type"),
        ({"max_completion_tokens": 0}, "integer_below_min_value"),
        ({"temperature": -1}, "decimal_below_min_value"),
        ({"temperature": 2.1}, "decimal_above_max_value"),
        ({"temperature": math.nan}, "decimal_below_min_value"),
        ({"temperature": math.inf}, "decimal_above_max_value"),
        ({"temperature": -math.inf}, "decimal_below_min_value"),
        ({"temperature": 10**400}, "decimal_above_max_value"),
        ({"temperature": "1"}, "invalid_type"),
        ({"temperature": False}, "invalid_type"),
        ({"top_p": 0}, "decimal_below_min_value"),
        ({"top_p": 1.01}, "decimal_above_max_value"),
        ({"min_p": -0.1}, "decimal_below_min_value"),
        ({"top_k": -2}, "integer_below_min_value"),
        ({"seed": 2**64}, "integer_above_max_value"),
        ({"seed": -(2**63) - 1}, "integer_below_min_value"),
        ({"seed": 1.0}, "invalid_type"),
        ({"stop": 5}, "invalid_type"),
        ({"stop": ["a", 5]}, "invalid_type"),
        ({"stop": ""}, "invalid_value"),
        ({"stop": ["a"] * 17}, "invalid_value"),
        ({"presence_penalty": 2.1}, "decimal_above_max_value"),
        ({"frequency_penalty": -2.1}, "decimal_below_min_value"),
        ({"repetition_penalty": 0}, "decimal_below_min_value"),
        ({"repetition_penalty": 0.0099}, "decimal_below_min_value"),
        ({"repetition_penalty": 1e-38}, "decimal_below_min_value"),
        ({"logit_bias": [1]}, "invalid_type"),
        ({"logit_bias": {"a": 1}}, "invalid_value"),
        ({"logit_bias": {"-1": 1}}, "invalid_value"),
        ({"logit_bias": {"99999999999": 1}}, "invalid_value"),
        ({"logit_bias": {"٣": 1}}, "invalid_value"),
        ({"logit_bias": {"1": 101}}, "decimal_above_max_value"),
        ({"logit_bias": {"1": None}}, "invalid_type"),
        ({"logit_bias": {str(n): 1 for n in range(1025)}}, "invalid_value"),
        ({"model": "huge"}, "model_not_found"),
        ({"model": 5}, "invalid_type"),
        ({"n": 0}, "integer_below_min_value"),
        ({"n": 9}, "integer_above_max_value"),
        ({"n": True}, "invalid_type"),
        ({"best_of": 2}, "unsupported_value"),
        ({"logprobs": True}, "invalid_type"),
        ({"logprobs": 6}, "integer_above_max_value"),
        ({"logprobs": -1}, "integer_below_min_value"),
        ({"top_logprobs": 1}, "invalid_value"),
        ({"min_tokens": -1}, "integer_below_min_value"),
        ({"min_tokens": 6, "max_tokens": 5}, "integer_above_max_value"),
        ({"min_tokens": DEFAULT_MAX_TOKENS + 1}, "integer_above_max_value"),
        ({"stop_token_ids": 5}, "invalid_type"),
        ({"stop_token_ids": ["5"]}, "invalid_type"),
        ({"stop_token_ids": [True]}, "invalid_type"),
        ({"stop_token_ids": [-1]}, "invalid_value"),
        ({"stop_token_ids": [1 << 31]}, "invalid_value"),
        ({"stop_token_ids": [5] * 65}, "invalid_value"),
        ({"echo": 1}, "invalid_type"),
        ({"tools": [{}]}, "unsupported_value"),
        ({"functions": [{}]}, "unsupported_value"),
        ({"stream": 1}, "invalid_type"),
        ({"trace": 1}, "invalid_type"),
        ({"ignore_eos": "yes"}, "invalid_type"),
        ({"deadline_ms": 0}, "decimal_below_min_value"),
        ({"id": "a b"}, "invalid_value"),
        ({"id": 1.5}, "invalid_value"),
        ({"client": ""}, "invalid_value"),
        ({"reply_to": 5}, "invalid_type"),
    ],
)
def test_invalid_field_is_refused_by_name(fields: dict[str, Any], code: str) -> None:
    error = refusal({"prompt": "x", **fields})
    assert (error.code, error.parameter) == (code, next(iter(fields)))


def test_max_tokens_has_a_default() -> None:
    assert read({"prompt": "x"}).is_default_length
    assert read({"prompt": "x", "max_tokens": None}).is_default_length
    assert not read({"prompt": "x", "max_tokens": DEFAULT_MAX_TOKENS}).is_default_length
    assert not read({"prompt": "x", "max_completion_tokens": 5}).is_default_length
    asked = read({"prompt": "x"})
    assert read(render_body(asked)) == asked


def test_contradictory_limits_are_refused() -> None:
    error = refusal({"prompt": "x", "max_tokens": 5, "max_completion_tokens": 6})
    assert error.parameter == "max_completion_tokens"


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("turn", "content"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, ""),
        ({"role": "assistant", "tool_calls": [CALL]}, ""),
        ({"role": "assistant", "content": None, "function_call": CALL["function"]}, ""),
        ({"role": "assistant", "content": None, "refusal": "no"}, "no"),
        ({"role": "assistant", "content": "yes", "refusal": None}, "yes"),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, "no"),
        ({"role": "assistant", "content": []}, ""),
        ({"role": "user", "content": []}, ""),
        ({"role": "tool", "tool_call_id": "1", "content": "x"}, "x"),
        ({"role": "tool", "content": [{"type": "text", "text": "x"}]}, "x"),
        ({"role": "user", "name": "alice", "content": "x"}, "x"),
    ],
    ids=str,
)
def test_former_messages_may_keep_fields_of_the_answer(turn: dict[str, Any], content: str) -> None:
    body = {"messages": [{"role": "user", "content": "a"}, turn]}
    [_, former] = read(body, "chat").prompt
    assert (former.role, former.content) == (turn["role"], content)


@pytest.mark.parametrize(
    ("messages", "parameter"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hi", "messages"),
        ([{"role": "user", "content": ""}], "messages"),
        ([{"role": "user", "content": "x"}] * 1025, "messages"),
        (["hi"], "messages[0]"),
        ([{"role": "king", "content": "x"}], "messages[0].role"),
        ([{"role": [], "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "assistant", "content": None}], "messages"),
        ([{"role": "assistant", "content": None, "refusal": 5}], "messages[0].content"),
        ([{"role": "assistant", "content": [{"type": "refusal"}]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content"),
        ([{"role": "user", "content": "\udfff"}], "messages[0].content"),
    ],
)
def test_invalid_chat_is_refused(messages: object, parameter: str) -> None:
    assert refusal({"messages": messages}, "chat").parameter == parameter


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b"null", "invalid_json"),
        (b"\xff\xfe", "invalid_encoding"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "invalid_json"),
    ],
)
def test_invalid_json_is_refused(payload: bytes, code: str) -> None:
    assert refusal(payload).code == code


def test_nan_literal_is_refused_with_its_field() -> None:
    error = refusal(b'{"prompt": "x", "temperature": NaN}')
    assert error.parameter == "temperature"


def test_bare_prompt_has_defaults_and_may_not_be_empty() -> None:
    request = ask_request("hm", client_id="a", request_id="1", limits=LIMITS, seed=3)
    assert (request.kind, request.prompt, request.sampling.seed) == ("ask", "hm", 3)
    with pytest.raises(RequestError, match="empty"):
        ask_request("", client_id="a", request_id="1", limits=LIMITS, seed=3)
    with pytest.raises(RequestError, match="UTF-8"):
        read_text(b"\xff")


numbers = st.floats(0, 1, exclude_min=True)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0, 2),
    top_k=st.integers(0, 2**31 - 1),
    top_p=numbers,
    min_p=st.floats(0, 1),
    seed=st.integers(0, MAX_SEED),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(0.1, 10),
    logit_bias=st.dictionaries(st.integers(0, 2**31 - 1), st.floats(-100, 100), max_size=5).map(
        lambda biases: tuple(sorted(biases.items()))
    ),
    min_tokens=st.integers(0, 5),
    stop_token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple),
)
turns = st.lists(st.builds(ChatMessage, role=st.just("user"), content=texts), min_size=1)
kinds_and_prompts = st.one_of(
    st.tuples(st.just("completion"), texts), st.tuples(st.just("chat"), turns.map(tuple))
)


@given(
    kind_and_prompt=kinds_and_prompts,
    sampling=samplings,
    max_tokens=st.integers(5, 512),
    top_logprobs=st.none() | st.integers(0, 5),
    n=st.integers(1, 8),
    ignore_eos=st.booleans(),
    stop=st.lists(texts, max_size=4).map(tuple),
    model=st.sampled_from([None, "tiny"]),
    deadline_s=st.one_of(st.just(math.inf), st.integers(1, 604_800).map(float)),
    stream=st.booleans(),
    trace=st.booleans(),
    priority=st.integers(-(1 << 31) + 1, (1 << 31) - 1),
)
@settings(max_examples=100)
def test_written_requests_round_trip(
    kind_and_prompt: tuple[Any, Any], stream: bool, **fields: Any
) -> None:
    kind, prompt = kind_and_prompt
    request = Request("cli", "1", kind, prompt, stream=stream, **fields)
    assert read(render_body(request), kind) == request


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=5,
)
names = st.sampled_from(
    [
        "prompt",
        "messages",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "model",
        "n",
        "logprobs",
        "top_logprobs",
        "min_tokens",
        "stop_token_ids",
        "logit_bias",
        "stream",
        "trace",
        "ignore_eos",
        "deadline_ms",
        "id",
        "client",
        "reply_to",
        "presence_penalty",
    ]
)


@given(body=st.dictionaries(names, json_values), kind=st.sampled_from(["chat", "completion"]))
def test_any_json_is_read_or_refused(body: dict[str, Any], kind: RequestKind) -> None:
    try:
        request = read(
            {"prompt": "x", "messages": [{"role": "user", "content": "x"}], **body}, kind
        )
    except RequestError:
        return
    assert request.prompt
    assert 0 <= request.sampling.min_tokens <= request.max_tokens <= LIMITS.max_tokens
    assert 1 <= request.n <= 8
    assert request.top_logprobs is None or 0 <= request.top_logprobs <= 20
    assert 0 <= request.sampling.temperature <= 2


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(payload: bytes) -> None:
    with contextlib.suppress(RequestError):
        assert read(payload).prompt
