"""Choices: each a request of its own, and together one answer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgecosine.protocol.api.choices import choice_seed, choices_of, join_answers
from edgecosine.protocol.api.request import MAX_SEED, Request, Sampling
from edgecosine.protocol.api.result import Answer, Choice, CommitteeUse, DrafterShare, Metrics

seeds = st.integers(0, MAX_SEED)


@given(seeds, st.integers(1, 8))
def test_choices_differ_in_name_and_seed_only(seed: int, n: int) -> None:
    request = Request("a", "1", "chat", (), sampling=Sampling(seed=seed, top_k=3), stop=("x",), n=n)
    choices = choices_of(request)
    assert len({choice.key for choice in choices}) == n
    assert len({choice.sampling.seed for choice in choices}) == n
    assert all(0 <= choice.sampling.seed <= MAX_SEED for choice in choices)
    assert all(
        (choice.n, choice.stop, choice.sampling.top_k) == (1, ("x",), 3) for choice in choices
    )


@given(seeds, st.integers(2, 8))
def test_first_choice_is_the_request_with_n_1(seed: int, n: int) -> None:
    alone = Request("a", "1", "ask", "x", sampling=Sampling(seed=seed))
    several = Request("a", "1", "ask", "x", sampling=Sampling(seed=seed), n=n)
    assert choices_of(several)[0] == choices_of(alone)[0] == alone


def test_seeds_of_choices_never_change() -> None:
    assert [choice_seed(7, choice) for choice in range(3)] == [
        7,
        14818979533484651488,
        4504606891059362275,
    ]


def answer(text: str, metrics: Metrics) -> Answer:
    return Answer((Choice(text, (1, 2), "stop"),), 5, 7, "m", metrics)


def test_single_answer_is_unchanged() -> None:
    alone = answer("a", Metrics(plan="p"))
    assert join_answers([alone]) is alone


def test_joined_answer_is_exact_only_if_all_choices_are() -> None:
    exact, rest = (
        Metrics(committee=CommitteeUse(is_exact=is_exact, why=str(is_exact)))
        for is_exact in (True, False)
    )
    assert (
        join_answers([answer("a", exact), answer("b", exact)]).metrics.committee == exact.committee
    )
    assert join_answers([answer("a", exact), answer("b", rest)]).metrics.committee == rest.committee
    assert join_answers([answer("a", Metrics()), answer("b", Metrics())]).metrics.committee is None


def test_counts_are_summed_and_times_are_those_of_concurrent_sessions() -> None:
    share = DrafterShare(proposed=4, accepted=2, late=1, led=3, first=1)
    first = Metrics((1, 2), 4, 3, 1, {"d1": share}, "p", queue_s=0.1, prefill_s=0.2, decode_s=3.0)
    second = Metrics(
        (0, 1, 5),
        11,
        6,
        4,
        {"d1": share, "d2": share},
        "q",
        queue_s=0.3,
        prefill_s=0.1,
        decode_s=2.0,
    )
    joined = join_answers([answer("a", first), answer("b", second)])
    assert [choice.text for choice in joined.choices] == ["a", "b"]
    assert (joined.num_tokens, joined.num_prompt_tokens, joined.seed) == (4, 5, 7)
    twice = DrafterShare(proposed=8, accepted=4, late=2, led=6, first=2)
    assert joined.metrics == Metrics(
        (1, 3, 5),
        15,
        9,
        5,
        {"d1": twice, "d2": share},
        "p",
        queue_s=0.1,
        prefill_s=0.2,
        decode_s=3.0,
    )
