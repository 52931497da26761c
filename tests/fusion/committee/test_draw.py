"""The exact draw of a committee: lists of any length give the draw of whole distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgecosine.fusion.committee.ballot import Ballot
from edgecosine.fusion.committee.draw import Drawn, Unproven, decide
from edgecosine.fusion.committee.draw_rule import DrawRule, offsets_of
from edgecosine.protocol.api.request import Sampling
from tests.fusion.committee.members import ballot, log_sum_exp, resolve, whole

VOCABULARY = 24
SHAPES = ("random", "flat", "tied", "one-hot", "disjoint", "with -inf", "zipf")

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 0.8, 1.0, 1.2, 3.0]),
    top_k=st.sampled_from([0, 0, 1, 3, 30]),
    top_p=st.sampled_from([1.0, 1.0, 0.0, 0.5, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.5]),
    seed=st.integers(0, 2**64 - 1),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.5, -1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.7]),
    logit_bias=st.sampled_from([(), (), ((3, 5.0), (7, -100.0))]),
)


def row(shape: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = {
        "random": lambda: rng.normal(0.0, 3.0, VOCABULARY),
        "flat": lambda: np.full(VOCABULARY, 1.5),
        "tied": lambda: rng.integers(0, 3, VOCABULARY).astype(float),
        "one-hot": lambda: np.where(np.arange(VOCABULARY) == seed % VOCABULARY, 0.0, -np.inf),
        "disjoint": lambda: np.where(np.arange(VOCABULARY) % 2 == seed % 2, 1.0, -np.inf),
        "with -inf": lambda: np.where(rng.random(VOCABULARY) < 0.4, -np.inf, rng.normal(0.0, 2.0)),
        "zipf": lambda: rng.permutation(-2.0 * np.log(1.0 + np.arange(VOCABULARY))),
    }[shape]()
    if not np.isfinite(values).any():
        values[0] = 0.0
    return values.astype(np.float32).astype(np.float64)


@st.composite
def committees(draw: st.DrawFn) -> tuple[np.ndarray, list[float]]:
    size = draw(st.integers(1, 4))
    shapes = [draw(st.sampled_from(SHAPES)) for _ in range(size)]
    rows = np.array([row(shape, draw(st.integers(0, 2**32))) for shape in shapes])
    shares = [draw(st.integers(1, 9)) for _ in range(size)]
    return rows, [share / sum(shares) for share in shares]


@given(
    committees(),
    samplings,
    st.integers(1, VOCABULARY),
    st.integers(1, 1000),
    st.lists(st.integers(0, VOCABULARY - 1), max_size=6),
    st.sampled_from([(), (0, 5)]),
    st.sampled_from([None, None, 0, 4]),
    st.sampled_from([None, None, range(0, VOCABULARY, 3), (1, 20)]),
)
@example(
    (np.array([row("flat", 0), row("flat", 1)]), [0.5, 0.5]), Sampling(), 1, 1, [], (), None, None
)
def test_lists_of_any_length_draw_as_whole_rows_do(
    committee: tuple[np.ndarray, list[float]],
    sampling: Sampling,
    k: int,
    position: int,
    answer: list[int],
    banned: tuple[int, ...],
    num_top: int | None,
    allowed: Sequence[int] | None,
) -> None:
    rows, weights = committee
    mask = None if allowed is None else np.isin(np.arange(VOCABULARY), [*allowed])
    rule = DrawRule(sampling, position, offsets_of(sampling, answer, banned), num_top, mask)
    expected = whole(rows, weights, rule)
    found = resolve(rows, weights, rule, k).drawn
    assert found.token == expected.token
    if num_top is not None:
        assert found.logprobs is not None
        assert expected.logprobs is not None
        assert found.logprobs == expected.logprobs


CUTS = [
    Sampling(temperature=temperature, **cuts)
    for temperature, cuts in (
        (0.0, {}), (1.0, {}), (0.7, {}), (1.0, {"top_p": 0.7}), (0.7, {"top_p": 0.6}),
        (1.4, {"top_p": 0.5}), (1.0, {"top_k": 3}), (1.0, {"min_p": 0.3}),
    )
]  # fmt: skip


@pytest.mark.parametrize("sampling", CUTS)
def test_a_token_that_is_first_for_no_member_can_win(sampling: Sampling) -> None:
    """Each member prefers a token of its own; one token is nearly as good for all of them."""
    rng, num_unlisted = np.random.default_rng(0), 0
    for seed in range(100):
        rule = DrawRule(replace(sampling, seed=seed), 1, {})
        rows = rng.normal(0.0, 0.5, (3, VOCABULARY))
        rows[:, 10] += 6.5
        rows[np.arange(3), rng.integers(0, 10, 3)] += 7.0
        rows = rows.astype(np.float32).astype(np.float64)
        weights = rng.dirichlet(np.ones(3)).tolist()
        expected = whole(rows, weights, rule).token
        num_unlisted += all(expected not in ballot(row, rule, 1).ids for row in rows)
        for k in (1, 3):
            assert resolve(rows, weights, rule, k).drawn.token == expected
    assert num_unlisted > 0


@given(committees(), samplings)
def test_members_of_equal_rows_draw_as_one_of_them(
    committee: tuple[np.ndarray, list[float]], sampling: Sampling
) -> None:
    rows, weights = committee
    rule = DrawRule(sampling, 7, offsets_of(sampling, [1], ()))
    copies = np.array([rows[0]] * len(weights))
    alone, together = whole(rows[:1], [1.0], rule), whole(copies, weights, rule)
    # Scores that are equal in theory may differ by rounding of the sum over members.
    if alone != together:
        z = (rows[0] + bounds_offsets(rule)) / (rule.temperature or 1.0) + rule.noise(
            np.arange(VOCABULARY)
        )
        assert z[alone.token] == pytest.approx(z[together.token], abs=1e-9)


def bounds_offsets(rule: DrawRule) -> np.ndarray:
    offsets = np.zeros(VOCABULARY)
    for token, offset in rule.offsets.items():
        offsets[token] = offset
    return offsets


def test_greedy_is_the_most_probable_token_and_no_vote() -> None:
    """Two of three members prefer token 1, each barely; the third is sure of token 2."""
    rows = np.log(np.array([[0.3, 0.36, 0.34], [0.3, 0.36, 0.34], [0.01, 0.01, 0.98]]))
    assert whole(rows, [1 / 3] * 3, DrawRule(Sampling(), 1, {})).token == 2


def test_tokens_are_distributed_as_the_mixture() -> None:
    """Chi-square of 1,500 first tokens against P, from lists of two tokens."""
    rows = np.array([row("random", 1)[:11], row("random", 2)[:11]])
    weights = [0.3, 0.7]
    lses = [log_sum_exp(each) for each in rows]
    expected = sum(w * np.exp(r - lse) for w, r, lse in zip(weights, rows, lses, strict=True))
    num_draws, counts = 1500, np.zeros(11)
    for seed in range(num_draws):
        rule = DrawRule(Sampling(temperature=1.0, seed=seed), 3, {})
        counts[resolve(rows, weights, rule, 4).drawn.token] += 1
    is_frequent = expected * num_draws >= 5
    statistic = ((counts - expected * num_draws) ** 2 / (expected * num_draws))[is_frequent].sum()
    assert statistic < 29.6  # the 0.999 quantile for 10 degrees of freedom


def test_short_lists_prove_nearly_all_draws_of_peaked_rows() -> None:
    rng = np.random.default_rng(5)
    zipf = -1.2 * np.log(1.0 + np.arange(2000))
    proven = 0
    for seed in range(50):
        rows = np.array([zipf[rng.permutation(2000)] for _ in range(2)])
        rows[1] = np.where(rng.random(2000) < 0.9, rows[0], rows[1])
        rule = DrawRule(Sampling(temperature=0.8, seed=seed), seed, {})
        found = resolve(rows, [0.5, 0.5], rule, 16)
        proven += not found.num_longer and not found.num_reveals
    assert proven >= 45


@pytest.mark.parametrize(
    ("lse", "ids", "logits"),
    [
        (math.nan, [0], [0.0]),
        (math.inf, [0], [0.0]),
        (0.0, [0], [math.nan]),
        (0.0, [0], [0.1]),
        (0.0, [0, 1], [-0.1, -0.1]),
        (0.0, [0], [math.inf]),
        (0.0, [9], [-1.0]),
        (0.0, [-1], [-1.0]),
    ],
)
def test_values_that_are_no_row_are_refused(
    lse: float, ids: list[int], logits: list[float]
) -> None:
    with pytest.raises(ValueError, match=r"NaN|sum|token"):
        Ballot.of(lse, np.array(ids), np.array(logits), vocabulary=9)


@given(st.integers(0, 2**32), st.floats(-50.0, 50.0), st.integers(1, VOCABULARY))
def test_a_member_with_false_bounds_moves_the_text_within_its_weight(
    seed: int, bound: float, k: int
) -> None:
    """Whatever a member claims, its ballot is that of some distribution that has its weight."""
    weights = [0.75, 0.25]
    rule = DrawRule(Sampling(), 1, {})
    honest = ballot(row("one-hot", seed), rule, VOCABULARY)
    hostile = ballot(row("random", seed), rule, k)
    false = Ballot(hostile.lse, hostile.ids, hostile.logits, logit_bound=bound)
    outcome = decide(weights, [honest, false], rule, VOCABULARY)
    if isinstance(outcome, Drawn):
        assert outcome.token == seed % VOCABULARY
    else:
        assert isinstance(outcome, Unproven)
