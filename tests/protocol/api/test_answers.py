"""Answers and errors: the shapes that readers know, and back again."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.errors import Overloaded, RequestError
from edgecosine.protocol.api.answers import (
    StreamPart,
    parse_final,
    parse_piece,
    render_error,
    render_final,
    render_piece,
    speculation_figures,
)
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import (
    Answer,
    Choice,
    DrafterShare,
    DraftTimes,
    Metrics,
    RoundTimes,
    ScoredToken,
    TokenLogprobs,
)

ANSWER = Answer(
    choices=(Choice("to be", (5, 6), "length"),),
    num_prompt_tokens=3,
    seed=2**64 - 1,
    model="tiny",
    identity="f1",
    metrics=Metrics(
        acceptance_histogram=(1, 0, 2),
        num_draft_tokens=6,
        num_speculative_rounds=3,
        num_ahead_rounds=1,
        drafters={"d1": DrafterShare(6, 4, 1, 3, 1)},
        plan="K=2: rtt 1.8 ms",
        decode_s=0.5,
    ),
)


def test_trace_has_the_recorded_rounds() -> None:
    draft = DraftTimes("d1", asked_s=0.01, ended_s=0.03, compute_s=0.005, num_tokens=4)
    times = RoundTimes(
        0.01, 0.031, 0.06, 0.02, num_nodes=4, num_accepted=2, drafts=(draft,), deadline_s=0.05,
        plan="K=4: acceptance .71",
    )  # fmt: skip
    answer = replace(ANSWER, metrics=replace(ANSWER.metrics, rounds=(times,)))
    request = Request("cli", "1", "completion", "x")
    (round_json,) = json.loads(render_final(request, answer, created_s=99))["edgecosine"]["rounds"]
    assert round_json == {
        "started_s": 0.01,
        "submitted_s": 0.031,
        "verified_s": 0.06,
        "pass_s": 0.02,
        "num_nodes": 4,
        "num_accepted": 2,
        "deadline_s": 0.05,
        "drafts": [
            {
                "drafter": "d1",
                "asked_s": 0.01,
                "ended_s": 0.03,
                "compute_s": 0.005,
                "num_tokens": 4,
            }
        ],
        "plan": "K=4: acceptance .71",
    }


def test_completion_has_the_format_of_openai() -> None:
    request = Request("cli", "1", "completion", "x")
    assert json.loads(render_final(request, ANSWER, created_s=99)) == {
        "id": "1",
        "object": "text_completion",
        "created": 99,
        "model": "tiny",
        "system_fingerprint": "f1",
        "choices": [{"index": 0, "finish_reason": "length", "logprobs": None, "text": "to be"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        "metrics": {
            "speculative_decoding": {
                "mean_acceptance_length": 1 + 4 / 3,
                "draft_acceptance_rate": 4 / 6,
                "acceptance_histogram": [1, 0, 2],
                "num_spec_steps": 3,
                "num_accepted_draft_tokens": 4,
                "num_draft_tokens": 6,
                "num_spec_tokens": 2,
            }
        },
        "edgecosine": {
            "drafters": {"d1": {"proposed": 6, "accepted": 4, "late": 1, "led": 3, "first": 1}},
            "plan": "K=2: rtt 1.8 ms",
            "speculative_rounds": 3,
            "ahead_rounds": 1,
            "seed": 2**64 - 1,
            "queue_s": 0.0,
            "prefill_s": 0.0,
            "decode_s": 0.5,
        },
    }


def test_chat_has_the_format_of_openai() -> None:
    body = json.loads(render_final(Request("cli", "1", "chat", ()), ANSWER, created_s=1))
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": "to be",
        "refusal": None,
    }


TORN = ScoredToken("bytes:\\xe2\\x82", b"\xe2\x82", -1.5)
LOGPROBS = (
    TokenLogprobs(ScoredToken("to", b"to", -0.5), (), text_offset=0),
    TokenLogprobs(TORN, (ScoredToken("be", b"be", -0.25), TORN), text_offset=2),
    TokenLogprobs(ScoredToken("!", b"!", -math.inf), (ScoredToken("?", b"?", 0.0),), 2),
)
SCORED = replace(ANSWER, choices=(Choice("to€", (5, 6, 7), "stop", LOGPROBS),))


def test_log_probabilities_of_a_completion_have_the_format_of_openai() -> None:
    body = json.loads(render_final(Request("cli", "1", "completion", "x"), SCORED, created_s=1))
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["to", "bytes:\\xe2\\x82", "!"],
        "token_logprobs": [-0.5, -1.5, -9999.0],
        "top_logprobs": [
            {"to": -0.5},
            {"be": -0.25, "bytes:\\xe2\\x82": -1.5},
            {"?": 0.0, "!": -9999.0},
        ],
        "text_offset": [0, 2, 2],
    }


def test_log_probabilities_of_a_chat_have_the_format_of_openai() -> None:
    body = json.loads(render_final(Request("cli", "1", "chat", ()), SCORED, created_s=1))
    torn = {"token": "bytes:\\xe2\\x82", "logprob": -1.5, "bytes": [0xE2, 0x82]}
    content = body["choices"][0]["logprobs"]["content"]
    assert content[0] == {"token": "to", "logprob": -0.5, "bytes": [116, 111], "top_logprobs": []}
    assert content[1] == {
        **torn,
        "top_logprobs": [{"token": "be", "logprob": -0.25, "bytes": [98, 101]}, torn],
    }


def test_choices_are_numbered_and_usage_is_their_sum() -> None:
    choices = (*ANSWER.choices, Choice("or not", (7, 8, 9), "stop"))
    payload = render_final(
        Request("cli", "1", "chat", (), n=2), replace(ANSWER, choices=choices), created_s=1
    )
    body = json.loads(payload)
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length", "stop"]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert parse_final(payload).texts == ("to be", "or not")


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=17), st.integers(0, 10**6))
def test_metrics_are_consistent(histogram: list[int], num_draft: int) -> None:
    figures = speculation_figures(Metrics(tuple(histogram), num_draft_tokens=num_draft))
    shares = figures["acceptance_histogram"]
    assert len(shares) == figures["num_spec_tokens"] + 1
    assert sum(shares) == figures["num_spec_steps"]
    assert sum(n * share for n, share in enumerate(shares)) == figures["num_accepted_draft_tokens"]
    if figures["num_spec_steps"]:
        assert figures["mean_acceptance_length"] >= 1


def test_ratios_without_data_are_null() -> None:
    figures = speculation_figures(Metrics())
    assert figures["mean_acceptance_length"] is None
    assert figures["draft_acceptance_rate"] is None


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_final_message_round_trips(kind: str) -> None:
    request = Request("cli", "1", kind, "x")  # type: ignore[arg-type]
    final = parse_final(render_final(request, ANSWER, created_s=1))
    assert (final.request_id, final.text, final.finish_reason) == ("1", "to be", "length")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "invalid_request_error"),
        (408, "timeout_error"),
        (500, "server_error"),
    ],
)
def test_error_round_trips(status: int, kind: str) -> None:
    error = RequestError("no", code="c", parameter="p", status=status)
    payload = render_error(error, "1")
    assert json.loads(payload)["id"] == "1"
    assert json.loads(payload)["error"]["type"] == kind
    with pytest.raises(RequestError) as caught:
        parse_final(payload)
    read = caught.value
    assert (read.message, read.code, read.parameter, read.status) == ("no", "c", "p", status)


def test_overload_keeps_retry_after() -> None:
    with pytest.raises(RequestError, match="capacity") as caught:
        parse_final(render_error(Overloaded(2.5), "1"))
    assert caught.value.retry_after_s == 2.5
    assert (caught.value.code, caught.value.status) == ("overloaded", 503)


@given(
    st.builds(
        StreamPart,
        st.integers(0, 10**6),
        st.text(st.characters(codec="utf-8")),
        st.booleans(),
        st.none() | st.integers(0, 7),
    )
)
def test_stream_part_round_trips(piece: StreamPart) -> None:
    assert parse_piece(render_piece(piece)) == piece
    assert (b"choice" in render_piece(replace(piece, text=""))) == (piece.choice is not None)


@given(st.binary(max_size=50))
def test_arbitrary_bytes_are_no_answer(payload: bytes) -> None:
    for parse in (parse_final, parse_piece):
        with pytest.raises(ValueError):  # noqa: PT011 -- whatever it says
            parse(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b"[]",
        b"1",
        b'{"id": "1", "choices": []}',
        b'{"error": {}}',
        b'{"i": true}',
        b"[" * 100_000,
    ],
    ids=lambda payload: payload[:30],
)
def test_arbitrary_json_is_no_answer(payload: bytes) -> None:
    for parse in (parse_final, parse_piece):
        with pytest.raises(ValueError):  # noqa: PT011 -- whatever it says
            parse(payload)


def test_final_message_with_an_invalid_choice_is_rejected() -> None:
    with pytest.raises(ValueError, match="no"):
        parse_final(b'{"id": "1", "choices": [{"finish_reason": "stop", "message": 5}]}')
