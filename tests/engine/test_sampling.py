"""Draws follow the target's distribution; shared noise is Gumbel noise."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from edgecosine.engine.gumbel import gumbel
from edgecosine.engine.sampling import adjust, draw, support
from edgecosine.protocol.api.request import Sampling

SIZE = 11
DRAWS = 4000


def _logits(seed: int, size: int = SIZE) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 1.5


def _reference(logits: torch.Tensor, how: Sampling) -> torch.Tensor:
    """The distribution computed directly from its definition."""
    probabilities = torch.softmax(logits / how.temperature, 0)
    order = torch.argsort(probabilities, descending=True)
    keep = torch.ones(len(logits), dtype=torch.bool)
    if how.top_k:
        keep[order[how.top_k :]] = False
    probabilities = probabilities * keep / (probabilities * keep).sum()
    if how.top_p < 1:
        mass = 0.0
        for token in order.tolist():
            if mass >= how.top_p:
                keep[token] = False
            mass += float(probabilities[token])
    probabilities = probabilities * keep / (probabilities * keep).sum()
    keep &= probabilities >= how.min_p * probabilities.max()
    return probabilities * keep / (probabilities * keep).sum()


@pytest.mark.parametrize(
    "how",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.6),
        Sampling(temperature=1.0, top_k=4),
        Sampling(temperature=1.0, top_p=0.8),
        Sampling(temperature=1.3, min_p=0.1),
        Sampling(temperature=0.9, top_k=7, top_p=0.9, min_p=0.05),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(how: Sampling) -> None:
    logits = _logits(1)
    expected = _reference(logits, how) * DRAWS
    counts = torch.zeros(SIZE)
    for position in range(DRAWS):
        counts[draw(logits, position, replace(how, seed=17))] += 1
    cut = expected == 0
    assert counts[cut].sum() == 0
    chi_square = ((counts - expected)[~cut] ** 2 / expected[~cut]).sum()
    freedom = int((~cut).sum()) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom) + 4


def test_noise_is_the_same_for_a_token_alone_and_in_the_whole_vocabulary() -> None:
    everything = gumbel(5, 9, torch.arange(1000))
    some = torch.tensor([3, 999, 500])
    assert torch.equal(gumbel(5, 9, some), everything[some])


def test_noise_differs_by_seed_position_and_token() -> None:
    seeds = {
        float(gumbel(s, p, torch.tensor([t]))) for s in range(9) for p in range(9) for t in (0, 1)
    }
    assert len(seeds) == 162


def test_noise_has_the_moments_of_gumbel() -> None:
    noise = gumbel(1, 2, torch.arange(200_000))
    assert abs(float(noise.mean()) - 0.5772) < 0.01
    assert abs(float(noise.var()) - math.pi**2 / 6) < 0.03


def test_top_p_over_a_wide_vocabulary_keeps_the_smallest_head() -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(2))
    how = Sampling(temperature=1.0, top_p=0.7)
    chosen = support(logits, how)
    reference = _reference(logits, how)
    assert set(chosen.tokens.tolist()) == set(reference.nonzero()[:, 0].tolist())


def test_penalties_and_bias_match_the_api() -> None:
    logits = torch.tensor([1.0, 2.0, -1.0, 0.5])
    how = Sampling(presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((3, 4.0),))
    changed = adjust(logits, answer=[1, 1, 2], prompt=[0], sampling=how)
    assert changed.tolist() == [1.0, 1.0, -1.75, 4.5]
    how = Sampling(repetition_penalty=2.0)
    assert adjust(logits, [2], [0], how).tolist() == [0.5, 2.0, -2.0, 0.5]
