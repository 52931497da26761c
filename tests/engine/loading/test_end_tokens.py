"""End tokens come from all files of a model, not from the defaults of its family."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, PreTrainedTokenizerFast

from edgecosine.engine.loading.end_tokens import end_tokens, turn_end
from edgecosine.engine.loading.load import load_target
from edgecosine.engine.options import LoadOptions
from tests.engine.loading.checkpoints import copy_zoo, edit

WORDS = {word: i for i, word in enumerate(("<s>", "a", "</s>", "<|turn|>", "0", "#"))}
TURNS = "{% for m in messages %}{{ m.content }}<|turn|>\n{% endfor %}"


def _tokenizer(template: str = "", eos: str | None = None) -> Any:
    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="a"))
    special = [AddedToken(word, special=True) for word in ("<s>", "</s>", "<|turn|>")]
    tokenizer.add_special_tokens(special)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos)
    made.chat_template = template or None
    return made


def _ends(*files: Mapping[str, Any], tokenizer: Any = None) -> list[int]:
    return end_tokens(AutoConfig.for_model("llama"), files, tokenizer or _tokenizer())


def test_end_tokens_come_from_all_files() -> None:
    tokenizer = _tokenizer(TURNS, eos="</s>")
    assert _ends({"eos_token_id": 5}, {"eos_token_id": [4]}, tokenizer=tokenizer) == [2, 3, 4, 5]
    assert _ends({"text_config": {"eos_token_id": [4, 5]}}) == [4, 5]


def test_default_of_the_family_is_used_where_no_file_names_a_token() -> None:
    assert _ends({}, {}) == [2]
    assert _ends({"eos_token_id": None}, tokenizer=_tokenizer(eos="<s>")) == [0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0", [0]), (" 5", [5]), ("#", [5]), (5.0, [5]), (["#", 4], [4, 5]), ("nothing", []),
     (-1, []), (True, []), (2.5, []), ({"a": 1}, [])],
)  # fmt: skip
def test_ids_are_read_in_all_spellings(value: object, expected: list[int]) -> None:
    assert _ends({"eos_token_id": value}, tokenizer=_tokenizer(eos="</s>")) == sorted(
        {2, *expected}
    )


@pytest.mark.parametrize(
    ("template", "token"),
    [
        (TURNS, 3),
        ("{% for m in messages %}{{ m.content }} </s>{% endfor %}", 2),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", None),
        ("{% for m in messages %}<|turn|>{{ m.content }}# {% endfor %}", None),
        ("{{ raise_exception('no') }}", None),
        ("{% for %}", None),
        ("", None),
    ],
)
def test_special_token_right_after_an_answer_ends_it(template: str, token: int | None) -> None:
    assert turn_end(_tokenizer(template)) == token


def test_end_token_of_the_tokenizer_alone_ends_answers(tmp_path: Path) -> None:
    where = copy_zoo(tmp_path / "model")
    (where / "generation_config.json").unlink()
    edit(where / "config.json", eos_token_id=None)
    _, loaded = load_target(LoadOptions(str(where), threads=1, slots=1))
    assert loaded.codec is not None
    assert loaded.codec.eos_tokens == {0}


def test_generation_settings_are_read_with_the_others(tmp_path: Path) -> None:
    where = copy_zoo(tmp_path / "model")
    (where / "generation_config.json").write_text(json.dumps({"eos_token_id": ["12", 13]}))
    _, loaded = load_target(LoadOptions(str(where), threads=1, slots=1))
    assert loaded.codec is not None
    assert loaded.codec.eos_tokens == {0, 12, 13}
