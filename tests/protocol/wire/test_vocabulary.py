"""Vocabularies are compared by content; padding does not count, and the difference has a name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.protocol.wire.vocabulary import ANY_VOCABULARY, Vocabulary, short_digest

WORDS = [f"word{number}" for number in range(1000)]


def test_unused_entries_at_the_end_do_not_count() -> None:
    bare, padded = Vocabulary.of(WORDS), Vocabulary.of([*WORDS, None, "", b"", None])
    assert bare == padded
    assert bare.first_difference(padded.digests) is None


def test_unused_entry_in_the_middle_counts() -> None:
    gap = [*WORDS[:500], None, *WORDS[500:]]
    assert Vocabulary.of(gap).first_difference(Vocabulary.of(WORDS).digests) == 1


def test_text_and_its_bytes_are_the_same_token() -> None:
    assert Vocabulary.of(["ä", "\ud800"]) == Vocabulary.of(["ä".encode(), b"\xed\xa0\x80"])


@given(st.integers(0, 999))
def test_both_sides_name_the_first_difference(token_id: int) -> None:
    ours = Vocabulary.of(WORDS)
    theirs = Vocabulary.of([*WORDS[:token_id], "other", *WORDS[token_id + 1 :]])
    index = ours.first_difference(theirs.digests)
    assert index == token_id // 256
    assert index == theirs.first_difference(ours.digests)
    difference = ours.difference(index, theirs.block(index))
    assert difference is not None
    assert (difference.token_id, difference.theirs) == (token_id, b"other")
    assert str(difference) == f"token {token_id} is b'word{token_id}' here and b'other' there"


@pytest.mark.parametrize("num_more", [1, 24, 25, 600])
def test_longer_vocabulary_differs_where_the_shorter_one_ends(num_more: int) -> None:
    short = Vocabulary.of(WORDS)
    long = Vocabulary.of([*WORDS, *(f"more{number}" for number in range(num_more))])
    index = short.first_difference(long.digests)
    assert index == 3
    difference = short.difference(index, long.block(index))
    assert str(difference) == "token 1000 is unused here and b'more0' there"


def test_very_long_tokens_are_shortened_in_reasons() -> None:
    ours, theirs = Vocabulary.of([b"x" * 1000]), Vocabulary.of([b"x" * 999])
    assert ours.first_difference(theirs.digests) == 0
    assert ours.difference(0, theirs.block(0)) is None


def test_short_digest_identifies_the_vocabulary() -> None:
    vocabulary = Vocabulary.of(WORDS)
    assert vocabulary.short_digest == short_digest(vocabulary.digests)
    assert len(vocabulary.short_digest) == 16
    assert ANY_VOCABULARY.short_digest == ""


def test_too_large_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 2097152 tokens"):
        Vocabulary.of(["x"] * (2097152 + 1))
