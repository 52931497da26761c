"""The bounds of SpecFed's reconstructions, as theorems."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.fusion.committee.bounds import known_bounds, mixed
from edgecosine.fusion.committee.draw import Drawn, draw_within
from edgecosine.fusion.committee.draw_rule import DrawRule, Reconstruction
from edgecosine.fusion.committee.reconstruction import mixture, most_different, reconstructed
from edgecosine.protocol.api.request import Sampling
from tests.fusion.committee.members import ballot, log_sum_exp
from tests.fusion.committee.test_draw import VOCABULARY, committees

TOLERANCE = 1e-5
"""Log-sum-exps are rounded to float32."""

kinds = st.sampled_from(["renormalise", "uniform"])
SAMPLED = Sampling(temperature=1.0, min_p=0.01)  # cuts: members list their most probable tokens


def logprobs_of(rows: np.ndarray) -> np.ndarray:
    return np.array([row - log_sum_exp(row) for row in rows])


@given(committees(), st.integers(1, VOCABULARY), kinds)
def test_a_member_loses_twice_its_lost_mass(
    committee: tuple[np.ndarray, list[float]], k: int, how: Reconstruction
) -> None:
    rows, _ = committee
    [p] = np.exp(logprobs_of(rows[:1]))
    logprobs, lost = reconstructed(ballot(rows[0], DrawRule(SAMPLED, 1, {}), k), how, VOCABULARY)
    error = np.abs(np.exp(logprobs) - p).sum()
    if how == "renormalise":
        assert error == pytest.approx(2.0 * lost, abs=TOLERANCE)
    else:
        assert error <= 2.0 * lost + TOLERANCE


@given(committees(), st.integers(1, VOCABULARY), kinds, st.integers(0, 2**32))
def test_the_mixture_and_the_acceptance_stay_within_the_bounds(
    committee: tuple[np.ndarray, list[float]], k: int, how: Reconstruction, seed: int
) -> None:
    rows, weights = committee
    rule = DrawRule(SAMPLED, 1, {})
    exact = np.exp(mixed(weights, logprobs_of(rows)))
    rebuilt, lost = mixture(weights, [ballot(row, rule, k) for row in rows], how, VOCABULARY)
    delta = np.abs(np.exp(rebuilt) - exact).sum()
    assert delta <= 2.0 * lost + TOLERANCE
    draft = np.random.default_rng(seed).dirichlet(np.full(VOCABULARY, 0.3))
    acceptance = np.minimum(draft, exact).sum() - np.minimum(draft, np.exp(rebuilt)).sum()
    assert abs(acceptance) <= delta / 2.0 + TOLERANCE <= lost + 2.0 * TOLERANCE


def test_the_acceptance_bound_needs_its_half() -> None:
    """The counter-example to the paper's equation 19: the error exceeds eps without the half."""
    row = np.log(np.array([0.9, 0.1]))
    logprobs, lost = reconstructed(ballot(row, DrawRule(SAMPLED, 1, {}), 1), "renormalise", 2)
    delta = np.abs(np.exp(logprobs) - np.exp(row)).sum()
    assert delta == pytest.approx(0.2, abs=1e-6)
    assert lost == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("how", ["renormalise", "uniform"])
def test_draws_with_the_same_noise_differ_no_more_often_than_the_bound(how: Reconstruction) -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(0.0, 1.5, (2, VOCABULARY)).astype(np.float32).astype(np.float64)
    weights, k, num_draws = [0.4, 0.6], 8, 2000
    exact = mixed(weights, logprobs_of(rows))
    rebuilt, lost = mixture(
        weights, [ballot(row, DrawRule(SAMPLED, 1, {}), k) for row in rows], how, VOCABULARY
    )
    differing = 0
    for seed in range(num_draws):
        rule = DrawRule(Sampling(temperature=1.0, seed=seed), 1, {})
        tokens = [draw_within(known_bounds(each, rule), rule) for each in (exact, rebuilt)]
        assert all(isinstance(token, Drawn) for token in tokens)
        differing += tokens[0] != tokens[1]
    assert 0 < differing / num_draws <= most_different(lost)
