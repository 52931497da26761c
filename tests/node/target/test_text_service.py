"""The text service: refuses requests that do not fit, before they are passed to the engine."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from edgecosine.balance.policy import POLICIES
from edgecosine.errors import RequestError
from edgecosine.protocol.api.request import ChatMessage, Request, Sampling
from edgecosine.protocol.api.result import Answer
from tests.node.links.wire_fixtures import run
from tests.support.cluster import harness
from tests.support.engines import NUM_TOKENS, ScriptedTarget, alone, babble

LANGUAGE = babble()


def request(**changes: Any) -> Request:
    fields: dict[str, Any] = {
        "client_id": "a", "request_id": "1", "kind": "ask", "prompt": "To be", "max_tokens": 10,
    }  # fmt: skip
    return Request(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "code", "parameter", "words"),
    [
        ({"policy": "mine"}, "invalid_request", "policy", "edgecosine"),
        ({"prompt": ""}, "empty_prompt", "prompt", "empty"),
        ({"max_tokens": 60}, "context_length_exceeded", "max_tokens", "5 tokens"),
        ({"prompt": "x" * 64}, "context_length_exceeded", "prompt", "64 tokens"),
        ({"prompt": "x" * 99_999}, "context_length_exceeded", "prompt", "context, 64"),
        (
            {"prompt": (ChatMessage("user", "x" * 99_999),)},
            "context_length_exceeded",
            "prompt",
            "context, 64",
        ),
        ({"prompt": (ChatMessage("user", "hi"),)}, "no_chat_template", None, "completion"),
        (
            {"sampling": Sampling(logit_bias=((5, 1.0), (NUM_TOKENS, 1.0)))},
            "invalid_request",
            "logit_bias",
            str(NUM_TOKENS),
        ),
        (
            {"sampling": Sampling(stop_token_ids=(NUM_TOKENS,))},
            "invalid_request",
            "stop_token_ids",
            str(NUM_TOKENS),
        ),
    ],
)
def test_request_that_cannot_be_served_is_refused_with_the_reason(
    changes: dict[str, Any], code: str, parameter: str | None, words: str
) -> None:
    async def main() -> None:
        target = ScriptedTarget(LANGUAGE, max_context=64)
        async with harness(target) as home:
            with pytest.raises(RequestError, match=words) as refusal:
                await home.answer(request(**changes))
            assert (refusal.value.code, refusal.value.parameter) == (code, parameter)
            assert repr(home.service) == "<TextService scripted [0 sessions, 0 done]>"
            assert (await home.answer(request())).text == alone(LANGUAGE, request()).text

    run(main())


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_prompt_with_a_token_that_the_model_cannot_read_is_refused(kind: str) -> None:
    prompt = (ChatMessage("user", "to \x7f be"),) if kind == "chat" else "to \x7f be"
    asked = request(kind=kind, prompt=prompt)

    async def main() -> None:
        async with harness(ScriptedTarget(LANGUAGE)) as home:
            codec = home.service._codec
            codec.num_rows = 0x7F
            codec._tokenizer.chat_template = "a template"
            codec._tokenizer.apply_chat_template = lambda turns, **_: turns[0]["content"]
            with pytest.raises(RequestError, match="token 127, but the model has tokens 0 to 126"):
                await home.answer(asked)
            assert (await home.answer(request())).text == alone(LANGUAGE, request()).text

    run(main())


def test_request_as_long_as_the_context_is_served() -> None:
    asked = request(max_tokens=59)

    async def main() -> Answer:
        async with harness(ScriptedTarget(LANGUAGE, max_context=64)) as home:
            return await home.answer(asked)

    assert run(main()).text == alone(LANGUAGE, asked).text


@pytest.mark.parametrize(("num_prompt", "num_tokens"), [(5, 59), (63, 1)])
def test_default_length_is_what_the_context_leaves(num_prompt: int, num_tokens: int) -> None:
    asked = request(
        prompt="x" * num_prompt, max_tokens=128, is_default_length=True, ignore_eos=True
    )

    async def main() -> Answer:
        async with harness(ScriptedTarget(LANGUAGE, max_context=64)) as home:
            return await home.answer(asked)

    answer = run(main())
    assert (answer.num_tokens, answer.finish_reason) == (num_tokens, "length")
    assert answer.text == alone(LANGUAGE, replace(asked, max_tokens=num_tokens)).text


@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        ({"prompt": "x" * 64}, "prompt"),
        ({"prompt": "x" * 60, "sampling": Sampling(min_tokens=5)}, "max_tokens"),
    ],
)
def test_default_length_needs_room_in_the_context(changes: dict[str, Any], parameter: str) -> None:
    async def main() -> None:
        async with harness(ScriptedTarget(LANGUAGE, max_context=64)) as home:
            with pytest.raises(RequestError) as refusal:
                await home.answer(request(is_default_length=True, max_tokens=128, **changes))
            assert refusal.value.code == "context_length_exceeded"
            assert refusal.value.parameter == parameter

    run(main())


def test_answers_are_counted_and_logged() -> None:
    async def main() -> None:
        async with harness(ScriptedTarget(LANGUAGE), max_sessions=3) as home:
            service = home.service
            assert service.max_sessions == 3
            assert service.info["models"] == ["scripted"]
            assert tuple(service.info["policies"]) == tuple(POLICIES)
            assert service.info["max_context"] == 4096
            for number in range(3):
                await home.answer(request(request_id=str(number), policy="target-alone"))
            assert (service.num_answers, service.num_tokens, service.num_rounds) == (3, 30, 27)

    run(main())


def test_cancelled_request_is_not_counted() -> None:
    async def main() -> None:
        async with harness(ScriptedTarget(LANGUAGE)) as home:
            async with aclosing(home.service.answer(request())) as steps:
                await anext(steps)
                assert "[1 sessions, 0 done]" in repr(home.service)
            assert repr(home.service) == "<TextService scripted [0 sessions, 0 done]>"

    run(main())
