"""`/openapi.json`: the description of the HTTP API, generated from the types of its bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgecosine import __version__
from edgecosine.http.backend import Backend
from edgecosine.http.replies import json_reply
from edgecosine.protocol.api import answer_bodies as answers
from edgecosine.protocol.api import bodies

_REFERENCE: Final = "#/components/schemas/{name}"
_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream"

Operation = tuple[str, str, str, type | None, type]
"""Method, path, summary, type of the body and type of the answer."""

OPERATIONS: Final[Sequence[Operation]] = (
    ("post", "/v1/chat/completions", "Answer a chat.", bodies.ChatBody, answers.ChatAnswer),
    (
        "post",
        "/v1/completions",
        "Complete prompts.",
        bodies.CompletionBody,
        answers.CompletionAnswer,
    ),
    ("get", "/v1/models", "List the models.", None, answers.ModelList),
    ("get", "/v1/models/{name}", "Describe a model.", None, answers.Model),
    ("post", "/tokenize", "Tokenize a text or a chat.", bodies.TokenizeBody, answers.Tokens),
    (
        "post",
        "/detokenize",
        "Join tokens to a text.",
        bodies.DetokenizeBody,
        answers.DetokenizedText,
    ),
    ("get", "/tokenizer_info", "Describe the tokenizer.", None, answers.TokenizerInfo),
    ("get", "/health", "Tell whether requests are taken.", None, answers.Health),
    ("get", "/ready", "Tell whether requests are taken.", None, answers.Health),
    ("get", "/version", "Tell the version.", None, answers.Version),
)


def description() -> dict[str, Any]:
    """The whole description, OpenAPI 3.1."""
    types = [each for *_, body, answer in OPERATIONS for each in (body, answer) if each is not None]
    _, schemas = msgspec.json.schema_components(
        [*types, answers.ErrorAnswer], ref_template=_REFERENCE
    )
    paths: dict[str, dict[str, Any]] = {}
    for method, path, summary, body, answer in OPERATIONS:
        paths.setdefault(path, {})[method] = _operation(path, summary, body, answer)
    return {
        "openapi": "3.1.0",
        "info": {"title": "EdgeCoSine", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _operation(path: str, summary: str, body: type | None, answer: type) -> dict[str, Any]:
    content = {_JSON: {"schema": _reference(answer)}}
    if answer in (answers.ChatAnswer, answers.CompletionAnswer):
        # The schema is that of an event: OpenAPI 3.1 has no other for the parts of a stream.
        data = {"type": "string", "description": "A chunk in JSON, or [DONE]."}
        schema: dict[str, Any] = {"type": "object", "properties": {"data": data}}
        content[_EVENTS] = {"schema": schema}
    error = {
        "description": "An error",
        "content": {_JSON: {"schema": _reference(answers.ErrorAnswer)}},
    }
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "The answer", "content": content}, "default": error},
    }
    if body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {_JSON: {"schema": _reference(body)}},
        }
    if "{name}" in path:
        name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        operation["parameters"] = [name]
    return operation


def _reference(kind: type) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(name=kind.__name__)}


def description_routes(_: Backend) -> Sequence[BaseRoute]:
    """The route of the description."""
    content = description()

    async def openapi(_: HttpRequest) -> Response:
        return json_reply(content)

    return (Route("/openapi.json", openapi),)
