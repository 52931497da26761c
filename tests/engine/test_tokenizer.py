"""The text and bytes of each token, and detokenization."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edgecosine.engine.loading.sources import locate
from edgecosine.engine.tokenizer import Detokenizer, TextCodec
from edgecosine.errors import RequestError
from edgecosine.protocol.api.request import ChatMessage


@pytest.fixture(scope="module")
def byte_level() -> TextCodec:
    """The zoo's tokenizer: GPT-2's letters for bytes."""
    return TextCodec(AutoTokenizer.from_pretrained(locate("target").where), [0])


def byte_fallback() -> TextCodec:
    """A tokenizer of words, with a token for each byte of unknown words."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁to", "▁be", "\ufffd"]
    tokenizer = Tokenizer(
        models.BPE(
            {name: number for number, name in enumerate(names)},
            [],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return TextCodec(PreTrainedTokenizerFast(tokenizer_object=tokenizer), [])


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20))
def test_spellings_of_tokens_make_up_the_text_to_the_byte(byte_level: TextCodec, text: str) -> None:
    spellings = [byte_level.spelling(token) for token in byte_level.encode(text)]
    assert b"".join(utf8 for _, utf8 in spellings) == text.encode()
    for spelt, utf8 in spellings:
        assert spelt.startswith("bytes:\\x") or spelt.encode() == utf8


def test_incomplete_characters_and_special_tokens_have_names(byte_level: TextCodec) -> None:
    euro = [byte_level.spelling(token) for token in byte_level.encode("€")]
    assert "".join(spelt for spelt, _ in euro).replace("bytes:", "") == r"\xe2\x82\xac"
    assert byte_level.spelling(0) == ("<|endoftext|>", b"<|endoftext|>")


def test_leading_space_belongs_to_the_token() -> None:
    codec = byte_fallback()
    names = {
        name: number for number, name in enumerate(["▁", "a", "▁to", "▁be", "\ufffd"], start=257)
    }
    assert codec.decode([names["▁to"], names["▁be"]]) == "to be"
    assert codec.spelling(names["▁to"]) == (" to", b" to")
    assert codec.spelling(1 + 0xE2) == ("bytes:\\xe2", b"\xe2")
    assert codec.spelling(1 + ord("x")) == ("x", b"x")
    assert codec.spelling(names["\ufffd"]) == ("\ufffd", "\ufffd".encode())


TURNS = [ChatMessage("user", "one"), ChatMessage("user", "two")]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for m in messages %}{{ m.content }}", "endfor"),
        ("{{ messages[0].name.first }}", "no attribute"),
        ("{{ messages[7]['content'] }}", "messages"),
        ("{{ messages[0]['content'] + 1 }}", "str"),
        ("{{ 1 // 0 }}", "division"),
        ("{{ messages | no_such_filter }}", "no_such_filter"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "recursion"),
        ({"tools": "x", "rag": "y"}, "default"),
    ],
)
def test_chat_rejected_by_the_template_is_refused_with_the_reason(
    template: object, reason: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(locate("target").where)
    tokenizer.chat_template = template
    codec = TextCodec(tokenizer, [0])
    with pytest.raises(RequestError, match=reason) as refusal:
        codec.encode_chat(TURNS)
    assert (refusal.value.status, refusal.value.parameter) == (400, "messages")
    assert "\n" not in refusal.value.message
    assert codec.encode("one")


def test_unusable_chat_template_is_reported_at_load() -> None:
    tokenizer = AutoTokenizer.from_pretrained(locate("target").where)
    tokenizer.chat_template = "{% for m in messages %}"
    assert "end of template" in str(TextCodec(tokenizer, [0]).chat_fault())
    for template in ("{{ messages[0]['content'] }}", None):
        tokenizer.chat_template = template
        assert TextCodec(tokenizer, [0]).chat_fault() is None


@pytest.mark.parametrize("prompt", ["", "a", "a to", "to be", "é"])
def test_text_of_an_answer_reads_as_after_its_prompt(prompt: str) -> None:
    codec = byte_fallback()
    ids = codec.encode("to be") + codec.encode("é") + codec.encode("to")
    detokenizer = Detokenizer(codec, codec.encode(prompt))
    text = "".join(detokenizer.push([token]) for token in ids) + detokenizer.finish()
    assert text == detokenizer.text == " to be é to"
    assert (
        text
        == "".join(utf8.decode("latin-1") for _, utf8 in map(codec.spelling, ids))
        .encode("latin-1")
        .decode()
    )


def test_text_after_special_tokens_keeps_its_space() -> None:
    codec = byte_fallback()
    detokenizer = Detokenizer(codec, [0] * 40)
    assert detokenizer.push(codec.encode("to")) + detokenizer.finish() == " to"


def test_special_tokens_are_found_by_their_names(byte_level: TextCodec) -> None:
    assert byte_level.special_token("<|endoftext|>") == 0
    for name in ("a", "def", "<|nothing|>", "<|endoftext|> ", "🦜"):
        assert byte_level.special_token(name) is None
    assert byte_fallback().special_token("?") is None


def test_too_long_text_is_detected_from_its_beginning(byte_level: TextCodec) -> None:
    for text, num_tokens in (("x " * 5000, 1000), ("def main():\n" * 900, 100)):
        assert byte_level.is_longer(text, num_tokens)
        assert len(byte_level.encode(text)) > num_tokens
    for text in ("x " * 500, " " * 100_000, ""):
        assert not byte_level.is_longer(text, len(byte_level.encode(text)))
