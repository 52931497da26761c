"""Tools and their calls are read, bounded and rendered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgecosine.errors import RequestError
from edgecosine.protocol.api.answers import FinalMessage, parse_final, render_final
from edgecosine.protocol.api.channels import CONTENT, REASONING, Channel
from edgecosine.protocol.api.json_fields import read_object
from edgecosine.protocol.api.openai import RequestLimits, parse_request, render_body
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Answer, Choice
from edgecosine.protocol.api.tools import MAX_TOOLS, ToolCall, ToolUse

SCHEMA = {"properties": {"b": {}, "a": {}}, "type": "object"}
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "ü", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "g"}},
]
NAMED = {"type": "function", "function": {"name": "g"}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def read(**body: Any) -> Request:
    fields = {"messages": [{"role": "user", "content": "x"}], "seed": 1, **body}
    return parse_request(
        "chat", fields, client_id="cli", request_id="1", limits=RequestLimits(),
        draw_seed=lambda: 0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "use"),
    [
        ({}, ("auto", "", True)),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, ("auto", "", False)),
        ({"tool_choice": "required"}, ("required", "", True)),
        ({"tool_choice": NAMED}, ("required", "g", False)),
        ({"tool_choice": "none"}, None),
        ({"tools": None}, None),
        ({"tools": []}, None),
    ],
)
def test_choice_of_tools_is_read_and_rendered(fields: dict[str, Any], use: Any) -> None:
    request = read(**{"tools": TOOLS, **fields})
    found = request.tools
    assert use == (found and (found.choice, found.named, found.is_parallel))
    assert read(**read_object(render_body(request))) == request


def test_tool_keeps_its_schema_and_its_words() -> None:
    use = read(tools=TOOLS).tools
    assert isinstance(use, ToolUse)
    assert [json.loads(tool.spec) for tool in use.tools] == [t["function"] for t in TOOLS]
    assert [json.loads(tool.parameters) for tool in use.tools] == [SCHEMA, {"type": "object"}]
    assert list(json.loads(use.tools[0].parameters)["properties"]) == ["b", "a"]


def test_turns_of_tools_are_read_and_rendered() -> None:
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "1", "name": "f", "content": "x"},
    ]
    request = read(messages=turns)
    assert not isinstance(request.prompt, str)
    called, answered = request.prompt
    assert (called.calls, called.reasoning) == ((ToolCall("1", "f", "{}"),), "hm")
    assert (answered.call_id, answered.name, answered.content) == ("1", "f", "x")
    assert read(**read_object(render_body(request))) == request


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "code"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": [TOOLS[0]] * (MAX_TOOLS + 1)}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"tool_choice": NAMED, "tools": TOOLS[:1]}, "tool_choice"),
        ({"tool_choice": "all", "tools": TOOLS}, "tool_choice"),
        ({"parallel_tool_calls": "no", "tools": TOOLS}, "parallel_tool_calls"),
        ({"min_tokens": 2, "tools": TOOLS}, "min_tokens"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": "f"}]}, "messages[0].tool_calls"),
    ],
)
def test_wrong_tool_is_refused_by_name(fields: dict[str, Any], parameter: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(**fields)
    assert caught.value.parameter == parameter


def test_final_message_has_every_channel() -> None:
    call = ToolCall("call_1", "f", '{"a": 1}')
    choice = Choice("", (1,), "tool_calls", reasoning="hm", calls=(call,))
    final = parse_final(render_final(read(), Answer((choice,), 1, 1, "m"), created_s=0))
    message = final.body["choices"][0]["message"]
    assert message["content"] is None
    assert message["reasoning"] == message["reasoning_content"] == "hm"
    assert isinstance(final, FinalMessage)
    assert final.texts == ("",)
    assert CONTENT not in final.others[0]
    assert final.others == ({REASONING: "hm", Channel("tool_call", 0, "call_1", "f"): '{"a": 1}'},)
