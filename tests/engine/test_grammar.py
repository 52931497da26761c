"""What a response format allows depends on the tokens of the answer alone; bad ones are refused."""

from __future__ import annotations

import functools
import json
import random
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from edgecosine import zoo
from edgecosine.engine.answer_grammar import AnswerForm
from edgecosine.engine.base import TokenMask
from edgecosine.engine.grammar import GrammarMatcher, Grammars
from edgecosine.errors import RequestError
from edgecosine.protocol.api.response_format import MAX_FORMAT_BYTES, ResponseFormat
from edgecosine.protocol.wire.tree import ROOT, TokenTree, chain

EOS, NUM_TOKENS = 0, 4096
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "is_tall": {"type": "boolean"}},
    "required": ["name", "is_tall"],
    "additionalProperties": False,
}


@functools.cache
def grammars() -> Grammars:
    return Grammars(tokenizer(), [EOS], NUM_TOKENS)


@functools.cache
def tokenizer() -> Any:
    path = zoo.DIRECTORY / zoo.TARGET / "tokenizer.json"
    return PreTrainedTokenizerFast(tokenizer_file=str(path))


def schema(value: object) -> ResponseFormat:
    return ResponseFormat("json_schema", json.dumps(value))


def matcher(form: ResponseFormat) -> GrammarMatcher:
    return grammars().compile(AnswerForm(form)).matcher()


def tokens_of(mask: TokenMask | None) -> list[int]:
    assert mask is not None
    return [token for token in range(NUM_TOKENS) if token in mask]


def walked(form: ResponseFormat, seed: int, most: int = 60) -> list[int]:
    """A random answer of the form, without its end token."""
    chance, fresh, answer = random.Random(seed), matcher(form), list[int]()
    while len(answer) < most:
        token = chance.choice(tokens_of(fresh.allowed(answer)))
        if token == EOS:
            break
        answer.append(token)
    return answer


@pytest.mark.parametrize("seed", range(4))
def test_mask_depends_on_the_tokens_alone(seed: int) -> None:
    chance, form = random.Random(seed), schema(PERSON)
    moved, answers = matcher(form), [walked(form, seed), walked(form, seed + 100)]
    for _ in range(30):
        answer = chance.choice(answers)
        at = chance.randrange(len(answer) + 1)
        assert moved.allowed(answer[:at]) == matcher(form).allowed(answer[:at])


def test_answer_ends_only_where_the_form_is_complete() -> None:
    form = schema(PERSON)
    answer = walked(form, 7)
    assert set(json.loads(tokenizer().decode(answer))) == {"name", "is_tall"}
    moved = matcher(form)
    ends = [EOS in tokens_of(moved.allowed(answer[:at])) for at in range(len(answer) + 1)]
    assert ends == [False] * len(answer) + [True]
    assert moved.allowed([*answer, EOS]) is None


def test_forced_tokens_are_the_only_allowed_ones() -> None:
    moved = matcher(schema(PERSON))
    forced = moved.forced([], 99)
    assert tokenizer().decode(forced) == '{"name":'
    assert moved.forced([], 2) == forced[:2]
    for at, token in enumerate(forced):
        assert tokens_of(moved.allowed(forced[:at])) == [token]


@pytest.mark.parametrize("seed", range(6))
def test_tree_keeps_what_the_masks_allow(seed: int) -> None:
    chance, form = random.Random(seed), schema(PERSON)
    whole = [*walked(form, seed), EOS]
    start = chance.randrange(len(whole))
    answer, right = whole[:start], whole[start:]
    tree = chain(tuple(right[:8]))
    for _ in range(12):
        tree = _with_child(tree, chance.randrange(ROOT, len(tree)), chance.randrange(NUM_TOKENS))
    moved, expected = matcher(form), set[int]()
    for node, parent in enumerate(tree.parents):
        path = [*answer, *(tree.tokens[each] for each in tree.path(parent))]
        if parent == ROOT or (parent in expected and tree.tokens[parent] != EOS):
            mask = moved.allowed(path)
            expected |= {node} if mask is not None and tree.tokens[node] in mask else set()
    kept = moved.cut(answer, tree)
    assert kept == tree.only(sorted(expected))
    assert len(kept) >= min(8, len(right))


def _with_child(tree: TokenTree, parent: int, token: int) -> TokenTree:
    if tree.child(parent, token) is not None:
        return tree
    return TokenTree(
        (*tree.tokens, token), (*tree.parents, parent),
        (*tree.confidences, 0.5), (*tree.proposers, 1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (ResponseFormat("regex", "[a-c]{3}-[0-9]"), None),
        (ResponseFormat("choice", '["red", "green\\n", "\\"blue\\""]'), None),
        (ResponseFormat("grammar", 'start: "a" b* "c"\nb: "b"'), None),
        (ResponseFormat("json_object"), '{"'),
    ],
)
def test_each_kind_of_form_can_be_walked(form: ResponseFormat, text: str | None) -> None:
    answer = tokenizer().decode(walked(form, 3))
    match form.kind:
        case "regex":
            assert len(answer) == 5
        case "choice":
            assert answer in json.loads(form.text)
        case "grammar":
            assert answer == "a" + "b" * (len(answer) - 2) + "c"
        case _:
            assert answer.startswith("{")


_REFUSED = [
    (schema({"type": "foo"}), "Invalid type"),
    (schema({"type": "object", "unevaluatedProperties": False}), "unevaluatedProperties"),
    (schema({"$ref": "#"}), "no text of this model"),
    (schema({"$ref": "https://example.org/schema"}), "not present"),
    (schema({"type": "string", "pattern": "["}), "regex"),
    (schema(functools.reduce(lambda inner, _: {"items": inner}, range(200), {})), "recursion"),
    (schema({"allOf": [{"pattern": f".*a.{{{n}}}", "type": "string"} for n in range(40)]}), "1 s"),
    (ResponseFormat("regex", "(unclosed"), "unclosed group"),
    (ResponseFormat("grammar", "start: missing"), "missing"),
    (ResponseFormat("grammar", "start: x\nx[max_tokens=5]: /.*/"), "max_tokens="),
    (ResponseFormat("grammar", 'start: x\nx[stop="."]: /.*/'), "stop="),
]  # fmt: skip


@pytest.mark.parametrize(("form", "reason"), _REFUSED)
def test_impossible_form_is_refused_with_the_reason(form: ResponseFormat, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        matcher(form)
    assert caught.value.code == "invalid_schema"
    assert len(caught.value.message) < 1000
    assert len(form.text) < MAX_FORMAT_BYTES


def test_slow_tokenizer_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match="tokenizer of this model") as caught:
        Grammars(object(), [EOS], NUM_TOKENS)
    assert caught.value.parameter == "response_format"
