"""The form that an answer must have: the field `response_format`, as a value.

OpenAI's types are text, json_object and json_schema; regex, choice and grammar are added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn

from edgecosine.errors import RequestError
from edgecosine.protocol.api.json_fields import invalid, is_sound, wrong_type

FIELD: Final = "response_format"
MAX_FORMAT_BYTES: Final = 64 << 10
MAX_CHOICE_TEXTS: Final = 1024

FormatKind = Literal["json_object", "json_schema", "regex", "choice", "grammar"]

_OTHER_FIELDS: Final = (
    "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """A form of answers.

    text  a JSON schema, a regular expression, a JSON list of strings, or a grammar in Lark's
          syntax; empty for json_object
    """

    kind: FormatKind
    text: str = ""


def read_response_format(body: Mapping[str, object]) -> ResponseFormat | None:
    """Parse `response_format`; None for plain text.

    Raises RequestError.
    """
    for name in _OTHER_FIELDS:
        if body.get(name) is not None:
            # An ignored field would give unconstrained text.
            raise RequestError(
                f"{name} is not supported; use response_format",
                code="unsupported_value",
                parameter=name,
            )
    value = body.get(FIELD)
    if value is None:
        return None
    if not isinstance(value, dict):
        wrong_type(FIELD, "an object")
    kind = value.get("type")
    match kind:
        case "text":
            return None
        case "json_object":
            return ResponseFormat("json_object")
        case "json_schema":
            return _bounded(ResponseFormat("json_schema", _schema_text(value)))
        case "regex" | "grammar":
            return _bounded(ResponseFormat(kind, _text(value, kind)))
        case "choice":
            return _bounded(ResponseFormat("choice", _choice_text(value)))
    raise RequestError(
        "response_format.type is not one of text, json_object, json_schema, regex, choice, grammar",
        code="unsupported_value",
        parameter=f"{FIELD}.type",
    )


def render_response_format(form: ResponseFormat) -> dict[str, Any]:
    """The object from which `read_response_format` makes the same value."""
    body: dict[str, Any] = {"type": form.kind}
    if form.kind == "json_schema":
        body["json_schema"] = {"name": "answer", "strict": True, "schema": json.loads(form.text)}
    elif form.kind == "choice":
        body["choice"] = json.loads(form.text)
    elif form.kind != "json_object":
        body[form.kind] = form.text
    return body


def refuse_schema(message: str, parameter: str = FIELD) -> NoReturn:
    """Raise RequestError for a format that cannot be enforced."""
    raise RequestError(message, code="invalid_schema", parameter=parameter)


def schema_text(schema: object, parameter: str) -> str:
    """A JSON schema as text, with the order of its properties.

    Raises RequestError for what is no schema.
    """
    if not isinstance(schema, dict | bool):
        wrong_type(parameter, "a JSON schema")
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
    except ValueError:
        refuse_schema(f"{parameter} holds a number that JSON does not have", parameter)
    if not is_sound(text):
        invalid(parameter, f"{parameter} holds half of a surrogate pair")
    return text


def _schema_text(value: Mapping[str, object]) -> str:
    inner = value.get("json_schema")
    if not isinstance(inner, dict):
        wrong_type(f"{FIELD}.json_schema", "an object")
    if inner.get("schema") is None:
        refuse_schema(f"{FIELD}.json_schema.schema is missing")
    return schema_text(inner["schema"], f"{FIELD}.json_schema.schema")


def _text(value: Mapping[str, object], kind: str) -> str:
    text = value.get(kind)
    if not isinstance(text, str) or not text:
        wrong_type(f"{FIELD}.{kind}", "a string")
    if not is_sound(text):
        invalid(f"{FIELD}.{kind}", f"{FIELD}.{kind} holds half of a surrogate pair")
    return text


def _choice_text(value: Mapping[str, object]) -> str:
    texts = value.get("choice")
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        wrong_type(f"{FIELD}.choice", "a list of strings")
    if not 1 <= len(texts) <= MAX_CHOICE_TEXTS:
        invalid(f"{FIELD}.choice", f"{FIELD}.choice has 1 to {MAX_CHOICE_TEXTS} entries")
    text = json.dumps(texts, ensure_ascii=False)
    if not is_sound(text):
        invalid(f"{FIELD}.choice", f"{FIELD}.choice holds half of a surrogate pair")
    return text


def _bounded(form: ResponseFormat) -> ResponseFormat:
    if (num_bytes := len(form.text.encode())) > MAX_FORMAT_BYTES:
        refuse_schema(f"{FIELD} has {num_bytes} bytes; a format has at most {MAX_FORMAT_BYTES}")
    return form
