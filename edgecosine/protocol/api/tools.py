"""Tools that a model may call: the fields `tools`, `tool_choice` and `tool_calls`, as values."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from edgecosine.errors import RequestError
from edgecosine.protocol.api.json_fields import Fields, invalid, is_sound, wrong_type
from edgecosine.protocol.api.response_format import MAX_FORMAT_BYTES, refuse_schema, schema_text

MAX_TOOLS: Final = 128
MAX_CALLS: Final = 64
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    parameters  JSON schema of its arguments
    spec        the function's object as the client sent it, as JSON, for the chat template
    """

    name: str
    parameters: str
    spec: str


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request, and how the model may call them.

    named  the only tool that may be called; empty for any of them
    """

    tools: tuple[Tool, ...]
    choice: Literal["auto", "required"] = "auto"
    named: str = ""
    is_parallel: bool = True

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """The tools that may be called."""
        return tuple(tool for tool in self.tools if self.named in {"", tool.name})


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the model; `arguments` is JSON."""

    call_id: str
    name: str
    arguments: str


def read_tools(body: Mapping[str, object]) -> ToolUse | None:
    """Parse the fields for tools; None where the model may call none.

    Raises RequestError.
    """
    tools, choice = _tools(body.get("tools")), body.get("tool_choice")
    is_parallel = Fields(body).boolean("parallel_tool_calls", default=True)
    names = {tool.name for tool in tools}
    match choice:
        case "none":
            return None
        case None | "auto":
            return ToolUse(tools, is_parallel=is_parallel) if tools else None
        case "required" if tools:
            return ToolUse(tools, "required", is_parallel=is_parallel)
        case {"type": "function", "function": {"name": str(name)}} if name in names:
            return ToolUse(tools, "required", name, is_parallel=False)
    raise RequestError(
        "tool_choice is not none, auto, required or one of the tools",
        code="invalid_value",
        parameter="tool_choice",
    )


def render_tools(use: ToolUse | None) -> dict[str, Any]:
    """The fields from which `read_tools` makes the same value."""
    if use is None:
        return {}
    choice: object = use.choice
    if use.named:
        choice = {"type": "function", "function": {"name": use.named}}
    return {
        "tools": [{"type": "function", "function": json.loads(tool.spec)} for tool in use.tools],
        "tool_choice": choice,
        "parallel_tool_calls": use.is_parallel,
    }


def read_calls(name: str, value: object) -> tuple[ToolCall, ...]:
    """Parse the tool calls of an assistant's message.

    Raises RequestError.
    """
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_CALLS:
        wrong_type(name, f"a list of at most {MAX_CALLS} calls")
    return tuple(_call(f"{name}[{number}]", each) for number, each in enumerate(value))


def render_calls(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Tool calls as in a message of OpenAI's API."""
    return [
        {
            "id": call.call_id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in calls
    ]


def _tools(value: object) -> tuple[Tool, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        wrong_type("tools", "a list")
    if len(value) > MAX_TOOLS:
        invalid("tools", f"tools has at most {MAX_TOOLS} entries")
    tools = tuple(_tool(f"tools[{number}]", each) for number, each in enumerate(value))
    if len({tool.name for tool in tools}) < len(tools):
        invalid("tools", "two tools have the same name")
    if sum(len(tool.spec.encode()) for tool in tools) > MAX_FORMAT_BYTES:
        refuse_schema(f"tools have more than {MAX_FORMAT_BYTES} bytes", "tools")
    return tools


def _tool(name: str, value: object) -> Tool:
    match value:
        case {"type": "function", "function": {"name": str(called), **more} as function}:
            pass
        case _:
            wrong_type(name, "an object of type function with a function that has a name")
    if not _NAME.fullmatch(called):
        invalid(f"{name}.function.name", f"{name} has no name of 1 to 64 letters, digits, _ or -")
    parameters = more.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        wrong_type(f"{name}.function.parameters", "a JSON schema of type object")
    schema = schema_text({**parameters, "type": "object"}, f"{name}.function.parameters")
    try:
        spec = json.dumps(function, allow_nan=False, ensure_ascii=False)
    except ValueError:
        refuse_schema(f"{name} holds a number that JSON does not have", name)
    if not is_sound(spec):
        invalid(name, f"{name} holds half of a surrogate pair")
    return Tool(called, schema, spec)


def _call(name: str, value: object) -> ToolCall:
    match value:
        case {"function": {"name": str(called), "arguments": str(arguments)}, **more}:
            call_id = more.get("id")
        case _:
            raise RequestError(
                f"{name} is not a call with function.name and function.arguments as strings",
                code="invalid_type",
                parameter=name,
            )
    call_id = call_id if isinstance(call_id, str) else ""
    if not all(map(is_sound, (called, arguments, call_id))):
        invalid(name, f"{name} holds half of a surrogate pair")
    return ToolCall(call_id, called, arguments)
