"""Transcripts: the same text however tokens are grouped, and nothing shown that is taken back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgecosine.node.transcript import Transcript
from edgecosine.protocol.request import Request
from tests.fakes_engine import EOS, NUM_TOKENS, alone, byte_codec

letters = [*"aé€😀b".encode(), 0xFF, EOS]
answers = st.lists(st.sampled_from(letters), max_size=40) | st.text("aab€", max_size=20).map(
    lambda text: list(text.encode())
)
stops = st.lists(st.text("ab€", min_size=1, max_size=12), max_size=3).map(tuple)


@given(answers, stops, st.integers(1, 40), st.booleans(), st.data())
def test_text_is_the_same_however_tokens_come(
    tokens: list[int], stop: tuple[str, ...], max_tokens: int, ignore_eos: bool, data: st.DataObject
) -> None:
    asked = Request("a", "1", "ask", "x", max_tokens=max_tokens, stop=stop, ignore_eos=ignore_eos)
    tokens = [*tokens, *[EOS] * max_tokens]
    said = alone(lambda so_far, _: tokens[len(so_far) - 1], asked)
    transcript, shown = Transcript(asked, byte_codec()), ""
    while transcript.finish_reason is None:
        start = len(transcript.tokens)
        size = data.draw(st.integers(1, 6))
        shown += transcript.push(tokens[start : start + size])
        assert said.text.startswith(shown)
    assert (transcript.text, shown) == (said.text, said.text)
    assert tuple(transcript.tokens) == said.tokens
    assert transcript.finish_reason == said.finish_reason
    assert transcript.room == max_tokens - len(said.tokens)


def test_what_can_be_no_stop_any_more_is_shown_at_once() -> None:
    asked = Request("a", "1", "ask", "x", stop=("stop it",))
    transcript = Transcript(asked, byte_codec())
    assert [transcript.push([letter]) for letter in b"a stop on"] == [
        "a", " ", "", "", "", "", "", "stop o", "n",
    ]  # fmt: skip


def test_vocabulary_of_the_codec_holds_the_end() -> None:
    assert byte_codec().num_tokens == NUM_TOKENS > EOS
