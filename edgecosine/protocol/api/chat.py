"""Parses the prompt of a completion and the messages of a chat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from edgecosine.errors import RequestError
from edgecosine.protocol.api.json_fields import Fields, check_text, invalid, is_sound, wrong_type
from edgecosine.protocol.api.request import ChatMessage
from edgecosine.protocol.api.tools import read_calls, render_calls

MAX_MESSAGES = 1024
MAX_PROMPT_CHARACTERS = 1 << 22
MAX_PROMPT_TOKENS = 1 << 20
_OF_TOOLS = ("tool_call_id", "name")
_MAX_NAME = 256
ROLES = ("system", "developer", "user", "assistant", "tool")


def read_prompt(body: Mapping[str, object]) -> str:
    """Parse the single prompt of a completion.

    Raises RequestError.
    """
    prompt = body.get("prompt")
    if prompt is None:
        missing("prompt")
    if isinstance(prompt, list):
        if len(prompt) != 1:
            invalid("prompt", "prompt must be a single text; send one request for each")
        prompt = prompt[0]
    if not isinstance(prompt, str):
        wrong_type("prompt", "a string")
    return check_prompt("prompt", prompt)


def read_token_prompt(body: Mapping[str, object]) -> tuple[int, ...]:
    """Parse a prompt that is a list of token ids, or a list with one such list; empty for others.

    Raises RequestError.
    """
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], list):
        prompt = prompt[0]
    if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], str | list):
        return ()
    return Fields({"prompt": prompt}).tokens("prompt", max_entries=MAX_PROMPT_TOKENS)


def check_prompt(name: str, text: str) -> str:
    """Return `text` if it is a valid prompt.

    Raises RequestError.
    """
    if not text:
        raise RequestError(f"{name} is empty", code="empty_prompt", parameter=name)
    return check_text(name, text, max_length=MAX_PROMPT_CHARACTERS)


def read_messages(body: Mapping[str, object]) -> tuple[ChatMessage, ...]:
    """Parse the messages of a chat.

    Raises RequestError.
    """
    messages = body.get("messages")
    if messages is None:
        missing("messages")
    if not isinstance(messages, list):
        wrong_type("messages", "a list")
    if len(messages) > MAX_MESSAGES:
        invalid("messages", f"messages has at most {MAX_MESSAGES} entries")
    chat = tuple(_message(f"messages[{i}]", message) for i, message in enumerate(messages))
    if not any(message.content for message in chat):
        raise RequestError("messages are empty", code="empty_prompt", parameter="messages")
    return chat


def _message(name: str, message: object) -> ChatMessage:
    if not isinstance(message, dict):
        wrong_type(name, "an object")
    role = message.get("role")
    if role not in ROLES:
        invalid(f"{name}.role", f"{name}.role is not one of {', '.join(ROLES)}")
    content = message.get("content")
    if role == "tool":
        call_id, tool = (_short(f"{name}.{field}", message.get(field)) for field in _OF_TOOLS)
        return ChatMessage("tool", _content(f"{name}.content", content), call_id=call_id, name=tool)
    if role != "assistant":
        return ChatMessage(str(role), _content(f"{name}.content", content))
    if content is None:
        # Clients send this for messages that only called tools, or refused.
        refusal = message.get("refusal")
        content = "" if refusal is None else refusal
    reasoning = message.get("reasoning") or message.get("reasoning_content") or ""
    return ChatMessage(
        role="assistant",
        content=_content(f"{name}.content", content),
        reasoning=_content(f"{name}.reasoning", reasoning),
        calls=read_calls(f"{name}.tool_calls", message.get("tool_calls")),
    )


def render_message(message: ChatMessage) -> dict[str, Any]:
    """The object from which `read_messages` makes the same message."""
    body: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        body["reasoning"] = message.reasoning
    if message.calls:
        body["tool_calls"] = render_calls(message.calls)
    if message.call_id:
        body["tool_call_id"] = message.call_id
    if message.name:
        body["name"] = message.name
    return body


def _short(name: str, value: object) -> str:
    return "" if value is None else check_text(name, value, max_length=_MAX_NAME)


def _content(name: str, content: object) -> str:
    """Text, or a list of parts that are all text."""
    if isinstance(content, list):
        parts = [_text_of(part) for part in content]
        if not all(isinstance(part, str) for part in parts):
            invalid(name, f"a part of {name} is not text")
        content = "".join(str(part) for part in parts)
    if not isinstance(content, str):
        wrong_type(name, "a string or a list of text parts")
    if not is_sound(content):
        invalid(name, f"{name} holds half of a surrogate pair")
    return content


def _text_of(part: object) -> object:
    if not isinstance(part, dict):
        return None
    return part.get("refusal" if part.get("type") == "refusal" else "text")


def missing(name: str) -> NoReturn:
    """Raise RequestError for a field that is required."""
    raise RequestError(f"{name} is missing", code="missing_required_parameter", parameter=name)
