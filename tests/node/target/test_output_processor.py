"""The output processor: the same text for any grouping of tokens, and no text taken back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from edgecosine.engine.loading.sources import locate
from edgecosine.engine.tokenizer import TextCodec
from edgecosine.node.target.output_processor import OutputProcessor
from edgecosine.protocol.api.request import Logprobs, Request, Sampling
from edgecosine.protocol.api.result import ScoredToken
from tests.support.engines import EOS, NUM_TOKENS, alone, byte_codec, draw

letters = [*"aé€😀b".encode(), 0xFF, EOS]
answers = st.lists(st.sampled_from(letters), max_size=40) | st.text("aab€", max_size=20).map(
    lambda text: list(text.encode())
)
stops = st.lists(st.text("ab€", min_size=1, max_size=12), max_size=3).map(tuple)


requests = st.builds(
    Request,
    client_id=st.just("a"),
    request_id=st.just("1"),
    kind=st.just("ask"),
    prompt=st.just("x"),
    max_tokens=st.integers(1, 40),
    stop=stops,
    ignore_eos=st.booleans(),
    sampling=st.builds(
        Sampling,
        min_tokens=st.sampled_from([0, 0, 1, 3, 10]),
        stop_token_ids=st.lists(st.sampled_from(letters), max_size=1).map(tuple),
    ),
)


@given(answers, requests, st.data())
def test_text_is_the_same_for_any_division_into_rounds(
    tokens: list[int], asked: Request, data: st.DataObject
) -> None:
    def language(so_far: Sequence[int], _: Sampling) -> int:
        return dict(enumerate(tokens, start=1)).get(len(so_far), EOS)

    expected, how = alone(language, asked), asked.sampling
    committed = [draw(language, [0] * (1 + n), 1, how) for n in range(asked.max_tokens)]
    output, shown = OutputProcessor(asked, byte_codec()), ""
    while output.finish_reason is None:
        start = len(output.tokens)
        size = data.draw(st.integers(1, 6))
        shown += output.push(committed[start : start + size])
        assert expected.text.startswith(shown)
    assert (output.text, shown) == (expected.text, expected.text)
    assert tuple(output.tokens) == expected.tokens
    assert output.finish_reason == expected.finish_reason
    assert output.room == asked.max_tokens - len(expected.tokens)


def test_text_that_cannot_become_a_stop_string_is_final_at_once() -> None:
    asked = Request("a", "1", "ask", "x", stop=("stop it",))
    output = OutputProcessor(asked, byte_codec())
    assert [output.push([letter]) for letter in b"a stop on"] == [
        "a", " ", "", "", "", "", "", "stop o", "n",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("min_tokens", "expected"),
    [(0, "a"), (2, "a"), (3, "a-"), (4, "a--- b"), (7, "a--- b"), (8, "a--- b-"), (9, "a--- b---")],
)
def test_stop_string_counts_when_it_ends_after_the_first_tokens(
    min_tokens: int, expected: str
) -> None:
    how = Sampling(min_tokens=min_tokens)
    asked = Request("a", "1", "ask", "x", stop=("--",), max_tokens=9, sampling=how)
    output = OutputProcessor(asked, byte_codec())
    output.push(b"a--- b---")
    assert output.text == expected


def test_log_probabilities_have_text_offsets() -> None:
    asked = Request("a", "1", "ask", "x", max_tokens=5, top_logprobs=1)
    output = OutputProcessor(asked, byte_codec())
    given = [Logprobs(-0.5 * n, ((ord("b"), -0.25),)) for n in range(5)]
    tokens = "a€b".encode()
    output.push(tokens[:3], given[:3])
    output.push(tokens[3:], given[3:])
    logprobs = output.choice().logprobs
    assert logprobs is not None
    assert [each.text_offset for each in logprobs] == [0, 1, 1, 1, 2]
    assert b"".join(each.token.utf8 for each in logprobs) == tokens
    assert [each.token.text for each in logprobs[:2]] == ["a", "bytes:\\xe2"]
    assert [each.token.logprob for each in logprobs] == [each.drawn for each in given]
    assert {each.top for each in logprobs} == {(ScoredToken("b", b"b", -0.25),)}


def test_vocabulary_of_the_codec_holds_the_end() -> None:
    assert byte_codec().num_tokens == NUM_TOKENS > EOS


@pytest.mark.parametrize(("min_tokens", "text", "num_tokens"), [(0, "a", 1), (2, "ab", 3)])
def test_stop_string_that_names_a_special_token_ends_the_answer_by_it(
    min_tokens: int, text: str, num_tokens: int
) -> None:
    codec = TextCodec(AutoTokenizer.from_pretrained(locate("target").where), [])
    how = Sampling(min_tokens=min_tokens)
    asked = Request(
        "a", "1", "ask", "x", stop=("no", "<|endoftext|>"), ignore_eos=True, sampling=how
    )
    [special], [a], [b] = map(codec.encode, ("<|endoftext|>", "a", "b"))
    output = OutputProcessor(asked, codec)
    output.push([a, special, b, special, b])
    assert (output.text, output.finish_reason) == (text, "stop")
    assert len(output.tokens) == num_tokens
