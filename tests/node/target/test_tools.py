"""Tool calls over the whole path: exact under speculation, and as OpenAI's client expects them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from edgecosine.errors import RequestError
from edgecosine.protocol.api.openai import RequestLimits, parse_request
from edgecosine.protocol.api.request import Committed, Request
from edgecosine.protocol.api.result import Delta
from tests.node.links.wire_fixtures import run
from tests.node.target.test_response_format import Zoo, setup, zoo_models
from tests.support.http import http_harness

__all__ = ["zoo_models"]

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
MESSAGES = [
    {"role": "user", "content": "What is the weather in Rome and in Oslo?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_1", "type": "function",
         "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}},
    ]},
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
]  # fmt: skip


def request(**fields: Any) -> Request:
    body = {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "required", "max_tokens": 90}
    return parse_request(
        "chat", {**body, **fields}, client_id="a", request_id="1", limits=RequestLimits(),
        draw_seed=lambda: 7,
    )  # fmt: skip


@pytest.mark.parametrize("tool_format", ["hermes", "mistral"])
def test_calls_are_the_same_with_drafters_and_after_a_restart(
    zoo_models: Zoo, tool_format: str
) -> None:
    async def scenario() -> None:
        async with setup(zoo_models, tool_format=tool_format) as node:
            for temperature in (0, 1):
                asked = request(temperature=temperature)
                together = (await node.answer(asked)).choices[0]
                alone = (await node.answer(replace(asked, policy="target-alone"))).choices[0]
                assert together == alone
                assert together.calls
                assert not together.text
                said = Committed(together.tokens[: len(together.tokens) // 2])
                assert (await node.answer(replace(asked, resumed=said))).choices[0] == together
                # The last call may be cut off by the length.
                for call in together.calls[: -1 if together.finish_reason == "length" else None]:
                    assert call.name == "get_weather"
                    jsonschema.validate(json.loads(call.arguments), PARAMETERS)
                deltas = [step for step in await node.ask(asked) if isinstance(step, Delta)]
                streamed = dict.fromkeys((delta.channel for delta in deltas), "")
                for delta in deltas:
                    streamed[delta.channel] += delta.text
                shown = [(channel.call_id, text) for channel, text in streamed.items()]
                assert shown[: len(together.calls)] == [
                    (call.call_id, call.arguments) for call in together.calls
                ]

    run(scenario())


def test_openai_client_reads_streamed_calls(zoo_models: Zoo) -> None:
    fields: dict[str, Any] = {
        "model": "scripted", "messages": MESSAGES, "tools": [TOOL], "temperature": 0,
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "max_tokens": 60,
    }  # fmt: skip

    async def scenario() -> None:
        async with (
            setup(zoo_models, tool_format="hermes") as node,
            http_harness(node.service) as home,
            home.openai() as client,
        ):
            whole = (await client.chat.completions.create(**fields)).choices[0]
            assert whole.finish_reason == "tool_calls"
            assert whole.message.content is None
            (call,) = whole.message.tool_calls
            async with client.chat.completions.stream(**fields) as stream:
                chunks = [event.chunk async for event in stream if event.type == "chunk"]
                final = (await stream.get_final_completion()).choices[0]
            assert final.finish_reason == "tool_calls"
            assert final.message.tool_calls[0].function.name == call.function.name
            assert final.message.tool_calls[0].function.arguments == call.function.arguments
            deltas = [
                delta
                for chunk in chunks
                for delta in (chunk.choices[0].delta.tool_calls or [] if chunk.choices else [])
            ]
            first, *others = deltas
            assert (first.index, first.type, first.function.arguments) == (0, "function", "")
            assert first.id.startswith("call_")
            assert all(each.id is None and each.function.name is None for each in others)

    run(scenario())


def test_model_without_a_format_of_calls_refuses_tools(zoo_models: Zoo) -> None:
    async def scenario() -> None:
        async with setup(zoo_models) as node:
            with pytest.raises(RequestError, match="--tool-format") as caught:
                node.service.check(request())
            assert caught.value.parameter == "tools"

    run(scenario())
