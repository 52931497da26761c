"""A grammar that compiles without end is refused, and the next one compiles."""

from __future__ import annotations

import json

import pytest
from transformers import PreTrainedTokenizerFast

from edgecosine import zoo
from edgecosine.engine.grammar_compiler import grammar_source, tokenizer_text
from edgecosine.engine.grammar_trial import GrammarTrial
from edgecosine.protocol.api.response_format import ResponseFormat


@pytest.fixture(scope="module")
def trial() -> GrammarTrial:
    path = zoo.DIRECTORY / zoo.TARGET / "tokenizer.json"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
    return GrammarTrial(tokenizer_text(tokenizer, [0], len(tokenizer)))


def source(schema: object) -> str:
    return grammar_source(ResponseFormat("json_schema", json.dumps(schema)))


def test_usual_schema_has_no_fault(trial: GrammarTrial) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string", "pattern": "^[a-z]+$"}}}
    assert trial.fault(source(schema)) == ""


def test_reason_is_that_of_the_library(trial: GrammarTrial) -> None:
    assert "no text" in trial.fault(source({"$ref": "#"}))


def test_endless_compile_is_ended_and_the_next_grammar_compiles(trial: GrammarTrial) -> None:
    patterns = [{"type": "string", "pattern": f".*a.{{{length}}}"} for length in range(40)]
    assert "1 s" in trial.fault(source({"allOf": patterns}))
    assert trial.fault(source({"type": "integer"})) == ""
