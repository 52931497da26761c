"""Calls have known names and valid arguments in each format; text around them is free."""

from __future__ import annotations

import copy
import functools
import json
import random
from typing import Any

import jsonschema
import pytest

from edgecosine.engine.answer_grammar import AnswerForm
from edgecosine.engine.answer_parser import AnswerParser
from edgecosine.engine.dialect import TOOL_FORMATS, Dialect, choose_dialect
from edgecosine.engine.grammar import Grammars
from edgecosine.engine.tokenizer import Detokenizer, TextCodec
from edgecosine.protocol.api.channels import CONTENT, REASONING, Piece
from edgecosine.protocol.api.response_format import ResponseFormat
from edgecosine.protocol.api.tools import ToolUse, read_tools
from tests.engine.test_grammar import EOS, tokenizer

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"enum": [1, 2, 3]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS}}
    for name in ("get_weather", "get-news")
]
HARMONY = "<|channel|><|message|>"


@functools.cache
def codec(has_marks: bool) -> TextCodec:
    """The zoo's tokenizer; with marks, tags are tokens, as in models that were trained on them."""
    if not has_marks:
        return TextCodec(tokenizer(), [EOS])
    marked = copy.deepcopy(tokenizer())
    marked.add_tokens(["<tool_call>", "</tool_call>", "<think>", "</think>"])
    special = ["[TOOL_CALLS]", *choose_dialect(HARMONY).marks]
    marked.add_special_tokens({"additional_special_tokens": special})
    return TextCodec(marked, [EOS])


@functools.cache
def grammars(has_marks: bool) -> Grammars:
    return Grammars(codec(has_marks).tokenizer, [EOS], codec(has_marks).num_tokens)


def dialect_of(name: str) -> Dialect:
    return choose_dialect(HARMONY if name == "harmony" else "", name)


def uses(**fields: Any) -> ToolUse:
    use = read_tools({"tools": TOOLS, **fields})
    assert use is not None
    return use


def walked(form: AnswerForm, has_marks: bool, seed: int, beginning: str = "") -> list[Piece]:
    """The pieces of a random answer after a beginning."""
    chance, matcher = random.Random(seed), grammars(has_marks).compile(form).matcher()
    answer = codec(has_marks).encode_rendered(beginning) if beginning else []
    while not answer or answer[-1] != EOS:
        mask = matcher.allowed(answer)
        assert mask is not None
        allowed = [token for token in range(codec(has_marks).num_tokens) if token in mask]
        assert allowed
        answer.append(EOS if EOS in allowed else chance.choice(allowed))
        assert len(answer) < 300
    names = {codec(has_marks).special_token(mark): mark for mark in form.dialect.all_marks}
    shown = {token: mark for token, mark in names.items() if token is not None}
    detokenizer = Detokenizer(codec(has_marks), shown=shown)
    text = detokenizer.push(answer[:-1]) + detokenizer.finish()
    parser = AnswerParser(
        form.dialect, in_reasoning=form.in_reasoning, call_id=str,
        tools=form.dialect.tools if form.tools else None,
    )  # fmt: skip
    return parser.feed(text) + parser.finish()


def checked_calls(pieces: list[Piece], names: set[str]) -> int:
    """The number of calls, which are valid."""
    calls = [(channel, text) for channel, text in pieces if channel.kind == "tool_call"]
    for channel, text in calls:
        assert channel.name in names
        jsonschema.validate(json.loads(text), PARAMETERS)
    return len(calls)


@pytest.mark.parametrize("has_marks", [False, True])
@pytest.mark.parametrize("name", TOOL_FORMATS)
@pytest.mark.parametrize("seed", range(2))
def test_required_call_is_valid_from_the_first_token(name: str, has_marks: bool, seed: int) -> None:
    dialect = dialect_of(name)
    form = AnswerForm(tools=uses(tool_choice="required"), dialect=dialect)
    # A random walk would not leave the reasoning, which the model may begin with.
    beginning = TOOL_FORMATS[name].trigger if dialect.reasoning else ""
    pieces = walked(form, has_marks, seed, beginning)
    assert checked_calls(pieces, {"get_weather", "get-news"})
    assert CONTENT not in dict(pieces)


def test_named_tool_is_the_one_that_is_called() -> None:
    choice = {"type": "function", "function": {"name": "get-news"}}
    form = AnswerForm(tools=uses(tool_choice=choice), dialect=dialect_of("hermes"))
    assert all(checked_calls(walked(form, True, seed), {"get-news"}) == 1 for seed in range(3))


@pytest.mark.parametrize("has_marks", [False, True])
@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_call_is_valid_once_it_has_begun(name: str, has_marks: bool) -> None:
    dialect = dialect_of(name)
    assert dialect.tools is not None
    form = AnswerForm(tools=uses(), dialect=dialect)
    before = "Let me see.\n" if dialect.tools.has_text_before else ""
    pieces = walked(form, has_marks, 5, before + dialect.tools.trigger)
    assert checked_calls(pieces, {"get_weather", "get-news"})
    assert dict(pieces).get(CONTENT, "") == before.strip()


@pytest.mark.parametrize("has_marks", [False, True])
@pytest.mark.parametrize("name", ["hermes", "llama3", "mistral"])
def test_answer_without_a_call_is_free(name: str, has_marks: bool) -> None:
    form = AnswerForm(tools=uses(), dialect=dialect_of(name))
    assert walked(form, has_marks, 1, "It is {cold}: <no") == [(CONTENT, "It is {cold}: <no")]


@pytest.mark.parametrize("has_marks", [False, True])
@pytest.mark.parametrize("template", ["<think>", HARMONY])
@pytest.mark.parametrize("in_reasoning", [False, True])
def test_format_begins_after_the_reasoning(
    template: str, has_marks: bool, in_reasoning: bool
) -> None:
    dialect = choose_dialect(template)
    assert dialect.reasoning is not None
    wanted = ResponseFormat("json_schema", json.dumps(PARAMETERS))
    opening, closing = dialect.reasoning
    form = AnswerForm(form=wanted, dialect=dialect, in_reasoning=in_reasoning)
    texts = dict(walked(form, has_marks, 2, f"{'' if in_reasoning else opening}So {{.{closing}"))
    jsonschema.validate(json.loads(texts[CONTENT]), PARAMETERS)
    assert texts[REASONING] == "So {."


def test_format_and_tools_exclude_all_other_text() -> None:
    wanted = ResponseFormat("json_schema", json.dumps(PARAMETERS))
    form = AnswerForm(form=wanted, tools=uses(), dialect=dialect_of("hermes"))
    texts = dict(walked(form, True, 3, '{"city":'))
    jsonschema.validate(json.loads(texts[CONTENT]), PARAMETERS)
    assert checked_calls(walked(form, True, 4, "<tool_call>"), {"get_weather", "get-news"})
