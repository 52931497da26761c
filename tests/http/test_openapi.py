"""The description of the HTTP API is true."""

from __future__ import annotations

from typing import Any

import jsonschema
import msgspec
import pytest

from edgecosine.http.openapi import description
from edgecosine.protocol.api.bodies import ChatBody, CompletionBody
from edgecosine.protocol.api.chat import read_messages
from tests.support.http import HttpHarness, http_harness
from tests.support.mqtt import run

SCHEMAS = description()["components"]["schemas"]
REQUIRED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "or not"}]},
    "/v1/completions": {"prompt": "or not"},
}
BODIES = {"/v1/chat/completions": ChatBody, "/v1/completions": CompletionBody}
WRONG = ({"no": "object"}, ["no list"], "no text", -7, 1e300, [], {}, True)


def valid(kind: str, value: object) -> bool:
    """Whether a value is what the description allows."""
    schema = {"$ref": f"#/components/schemas/{kind}", "components": {"schemas": SCHEMAS}}
    return jsonschema.Draft202012Validator(schema).is_valid(value)


async def post(home: HttpHarness, path: str, body: object) -> tuple[int, Any]:
    """Status and body of an answer, which the description allows."""
    reply = await home.http.post(path, json=body)
    answer = reply.json()
    assert valid("ErrorAnswer" if reply.status_code >= 400 else _answer_of(path), answer), answer
    return reply.status_code, answer


def _answer_of(path: str) -> str:
    operation = next(iter(description()["paths"][path].values()))
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    return str(schema["$ref"].rpartition("/")[2])


@pytest.mark.parametrize("path", BODIES)
def test_value_that_the_description_forbids_is_refused(path: str) -> None:
    async def scenario() -> None:
        body_type = BODIES[path]
        async with http_harness() as home:
            status, _ = await post(home, path, REQUIRED[path])
            assert status == 200
            for field in msgspec.structs.fields(body_type):
                refused = 0
                for value in WRONG:
                    body = {**REQUIRED[path], field.name: value}
                    if valid(body_type.__name__, body):
                        continue
                    status, answer = await post(home, path, body)
                    assert status == 400, (field.name, value)
                    assert answer["error"]["param"].startswith(field.name), answer
                    refused += 1
                assert refused > 2, field.name

    run(scenario())


def test_answers_have_the_form_of_the_description() -> None:
    async def scenario() -> None:
        async with http_harness() as home:
            for path, operations in description()["paths"].items():
                if "get" in operations and "{" not in path and path != "/tokenizer_info":
                    assert valid(_answer_of(path), (await home.http.get(path)).json())
            assert valid("Model", (await home.http.get("/v1/models/tiny")).json())
            for path in ("/v1/models/none", "/none", "/tokenizer_info"):
                reply = await home.http.get(path)
                assert (reply.status_code, valid("ErrorAnswer", reply.json())) == (404, True)
            several = {"prompt": ["a", "b"], "n": 2, "logprobs": 1}
            status, answer = await post(home, "/v1/completions", several)
            assert (status, len(answer["choices"])) == (200, 4)
            assert (await home.http.get("/openapi.json")).json() == description()

    run(scenario())


def test_messages_of_the_description_are_read() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "or not"}]}
    assert valid("MessageBody", message)
    (read,) = read_messages({"messages": [message]})
    assert read.content == "or not"
