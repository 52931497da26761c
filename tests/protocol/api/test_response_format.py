"""The form of an answer is read, bounded and rendered; another field's name is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from edgecosine.errors import RequestError
from edgecosine.protocol.api.json_fields import read_object
from edgecosine.protocol.api.openai import RequestLimits, parse_request, render_body
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.response_format import MAX_FORMAT_BYTES, ResponseFormat

SCHEMA = {"type": "object", "properties": {"b": {}, "a": {"enum": ["ü", 1.5]}}}


def read(body: dict[str, Any]) -> Request:
    return parse_request(
        "completion", {"prompt": "x", "seed": 1, **body}, client_id="cli", request_id="1",
        limits=RequestLimits(), draw_seed=lambda: 0,
    )  # fmt: skip


def wrapped(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}


@pytest.mark.parametrize(
    ("field", "form"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, ResponseFormat("json_object")),
        (
            wrapped(SCHEMA),
            ResponseFormat(
                "json_schema",
                '{"type": "object", "properties": {"b": {}, "a": {"enum": ["ü", 1.5]}}}',
            ),
        ),
        ({"type": "regex", "regex": "a+"}, ResponseFormat("regex", "a+")),
        ({"type": "choice", "choice": ["a", "b"]}, ResponseFormat("choice", '["a", "b"]')),
        ({"type": "grammar", "grammar": "start: x"}, ResponseFormat("grammar", "start: x")),
    ],
)
def test_form_is_read_and_rendered(field: object, form: ResponseFormat | None) -> None:
    request = read({"response_format": field})
    assert request.form == form
    assert read(read_object(render_body(request))) == request


@pytest.mark.parametrize(
    ("body", "code", "parameter"),
    [
        ({"response_format": "json"}, "invalid_type", "response_format"),
        ({"response_format": {}}, "unsupported_value", "response_format.type"),
        ({"response_format": {"type": "xml"}}, "unsupported_value", "response_format.type"),
        (
            {"response_format": {"type": "json_schema"}},
            "invalid_type",
            "response_format.json_schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "invalid_schema",
            "response_format",
        ),
        ({"response_format": wrapped([])}, "invalid_type", "response_format.json_schema.schema"),
        (
            {"response_format": wrapped({"maximum": math.inf})},
            "invalid_schema",
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": wrapped({"enum": ["x" * MAX_FORMAT_BYTES]})},
            "invalid_schema",
            "response_format",
        ),
        ({"response_format": {"type": "regex"}}, "invalid_type", "response_format.regex"),
        (
            {"response_format": {"type": "choice", "choice": []}},
            "invalid_value",
            "response_format.choice",
        ),
        (
            {"response_format": {"type": "json_object"}, "ignore_eos": True},
            "unsupported_value",
            "ignore_eos",
        ),
        (
            {"response_format": {"type": "json_object"}, "min_tokens": 3},
            "unsupported_value",
            "min_tokens",
        ),
        ({"guided_json": {}}, "unsupported_value", "guided_json"),
        ({"structured_outputs": {"regex": "a"}}, "unsupported_value", "structured_outputs"),
    ],
)
def test_impossible_form_is_refused_by_name(
    body: dict[str, Any], code: str, parameter: str
) -> None:
    with pytest.raises(RequestError) as caught:
        read(body)
    assert (caught.value.code, caught.value.parameter) == (code, parameter)
