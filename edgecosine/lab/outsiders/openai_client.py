"""OpenAI's own client against a target: `openai_client.py URL MODEL`. Knows nothing of EdgeCoSine.

Prints a line for each check; ends with 1 if one fails.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import openai

Check = Callable[[Any, str], None]

HELLO = [{"role": "user", "content": "Say hello."}]
COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


def models(client: Any, model: str) -> None:
    assert model in [each.id for each in client.models.list().data]


def chat(client: Any, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=16)
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def stream(client: Any, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=HELLO, max_tokens=24)
    chunks = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=24, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    parts = list(chunks)
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content
    assert parts[-1].usage == whole.usage


def completion(client: Any, model: str) -> None:
    answer = client.completions.create(model=model, prompt="Once", max_tokens=8, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.tokens or ()) == 8


def json_schema(client: Any, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=64,
        response_format={
            "type": "json_schema", "json_schema": {"name": "c", "strict": True, "schema": COLOUR},
        },
    )  # fmt: skip
    assert json.loads(answer.choices[0].message.content)["colour"] in ("red", "green")


def tools(client: Any, model: str) -> None:
    function = {"name": "paint", "parameters": COLOUR}
    answer = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=96,
        tool_choice="required", parallel_tool_calls=False,
        tools=[{"type": "function", "function": function}],
    )  # fmt: skip
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "paint"
    assert json.loads(call.function.arguments)["colour"] in ("red", "green")
    assert answer.choices[0].finish_reason == "tool_calls"


def errors(client: Any, model: str) -> None:
    wrong = {"model": model, "messages": HELLO, "temperature": 9.0}
    assert error_of(lambda: client.chat.completions.create(**wrong)).param == "temperature"
    assert error_of(lambda: client.models.retrieve("gpt-99")).status_code == 404


def error_of(call: Callable[[], object]) -> Any:
    """The error that a call raises."""
    try:
        call()
    except openai.APIStatusError as error:
        return error
    raise AssertionError("a wrong request was accepted")


def cancellation(client: Any, model: str) -> None:
    """Streams that are closed early free their sessions for later requests."""
    for _ in range(24):
        chunks = client.chat.completions.create(
            model=model, messages=HELLO, max_tokens=256, stream=True
        )
        next(iter(chunks))
        chunks.close()
    chat(client, model)


CHECKS: tuple[Check, ...] = (
    models, chat, stream, completion, json_schema, tools, errors, cancellation,
)  # fmt: skip


def run(url: str, model: str) -> Iterator[str]:
    """Run the checks and print a line for each; yields the names of those that fail."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        for check in CHECKS:
            name = check.__name__
            try:
                check(client, model)
            except (AssertionError, openai.OpenAIError, ValueError, TypeError) as error:
                print(f"{name}: failed: {type(error).__name__}: {error}"[:400])
                yield name
            else:
                print(f"{name}: passed")


if __name__ == "__main__":
    failed = list(run(*sys.argv[1:3]))
    print(f"{len(CHECKS) - len(failed)} passed; failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))
