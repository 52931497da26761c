"""Requests and answers: values that follow from several fields."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.protocol.api.request import Request, Sampling
from edgecosine.protocol.api.result import Answer, Choice, Metrics


@pytest.mark.parametrize(
    ("sampling", "is_greedy", "is_plain"),
    [
        (Sampling(), True, True),
        (Sampling(seed=5, top_k=3, top_p=0.5, min_p=0.1), True, True),
        (Sampling(temperature=0.1), False, True),
        (Sampling(presence_penalty=0.1), True, False),
        (Sampling(frequency_penalty=-0.1), True, False),
        (Sampling(repetition_penalty=1.1), True, False),
        (Sampling(logit_bias=((1, 0.0),)), True, False),
    ],
)
def test_sampling_parameters_determine_the_method(
    sampling: Sampling, is_greedy: bool, is_plain: bool
) -> None:
    assert (sampling.is_greedy, sampling.is_plain) == (is_greedy, is_plain)


def test_request_key_is_client_and_request_id() -> None:
    assert Request("client", "7", "ask", "x").key == "client/7"
    assert Request("client", "7", "ask", "x", choice=2).key == "client/7/2"


@given(st.lists(st.integers(0, 12), max_size=40))
def test_rounds_and_accepted_tokens_follow_from_the_histogram(lengths: list[int]) -> None:
    counts = tuple(lengths.count(n) for n in range(13))
    metrics = Metrics(acceptance_histogram=counts)
    assert metrics.num_rounds == len(lengths)
    assert metrics.num_accepted_tokens == sum(lengths)


def test_answer_counts_its_tokens() -> None:
    choices = Choice("ab", (1, 2), "stop"), Choice("c", (3,), "length")
    answer = Answer(choices, 5, 0, "m")
    assert answer.num_tokens == 3
    assert (answer.text, answer.tokens, answer.finish_reason) == ("ab", (1, 2), "stop")
    assert answer.metrics.num_rounds == 0
