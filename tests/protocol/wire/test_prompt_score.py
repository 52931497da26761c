"""Scores of tokens that were read in parts."""

from __future__ import annotations

from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.protocol.wire.prompt_score import NO_PROMPT_SCORE, PromptScore


def score_of(nlls: list[float]) -> PromptScore:
    if not nlls:
        return NO_PROMPT_SCORE
    return PromptScore(tuple(nll < 1.0 for nll in nlls), sum(nlls) / len(nlls))


@given(st.lists(st.lists(st.floats(0, 100), max_size=5), max_size=5))
def test_joined_scores_are_the_score_of_all_tokens(parts: list[list[float]]) -> None:
    joined = reduce(PromptScore.joined, map(score_of, parts), NO_PROMPT_SCORE)
    whole = score_of([nll for part in parts for nll in part])
    assert joined.top1_matches == whole.top1_matches
    assert joined.nll == pytest.approx(whole.nll)
