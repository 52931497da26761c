"""Draft tokens follow the definition, with and without the kernel, in any batch."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from edgecosine.engine.cpu.kernel_library import Kernels, KernelsUnavailable, load_kernels
from edgecosine.engine.draft.draft_sampling import DraftTokens, rank_draft_tokens
from edgecosine.engine.gumbel import gumbel
from edgecosine.engine.sampling import draw
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.messages import SharedNoise

ROWS, VOCABULARY = 40, 517
DRAWS = 4000


def _kernels() -> Kernels | None:
    try:
        return load_kernels()
    except KernelsUnavailable:
        return None


WAYS = [pytest.param(None, id="torch")]
if _kernels() is not None:
    WAYS.append(pytest.param(_kernels(), id="kernel"))


def _logits(rows: int, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def _coupling(temperature: float, seed: int = 11) -> SharedNoise:
    return SharedNoise(temperature=temperature, seed=seed.to_bytes(8, "little"))


@functools.cache
def _noise() -> torch.Tensor:
    """Gumbel noise of seed 11 [draws, vocabulary]."""
    return torch.stack([gumbel(11, p, torch.arange(VOCABULARY)) for p in range(DRAWS)])


@functools.cache
def _drawn_by_the_target() -> tuple[torch.Tensor, list[int]]:
    """The target's logits [vocabulary] and its tokens with the noise of seed 11."""
    target, how = _logits(1, seed=3)[0] / 3, Sampling(temperature=1.0, seed=11)
    return target, [draw(target, position, how) for position in range(DRAWS)]


@pytest.mark.parametrize("kernels", WAYS)
def test_greedy_draft_tokens_are_the_most_probable_ones(
    kernels: Kernels | None,
) -> None:
    logits = _logits(ROWS)
    draft_tokens = rank_draft_tokens(logits, range(ROWS), [SharedNoise()] * ROWS, 3, kernels)
    best = torch.topk(torch.softmax(logits, 1), 3)
    assert [each.tokens for each in draft_tokens] == best.indices.tolist()
    found = torch.tensor([each.confidences for each in draft_tokens])
    torch.testing.assert_close(found, best.values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kernels", WAYS)
def test_noisy_draft_token_equals_the_draw_from_the_same_logits(kernels: Kernels | None) -> None:
    logits = _logits(ROWS, seed=1)
    noise, how = _coupling(0.8), Sampling(temperature=0.8, seed=11)
    draft_tokens = rank_draft_tokens(logits, range(ROWS), [noise] * ROWS, 2, kernels)
    drawn = [draw(row, position, how) for position, row in enumerate(logits)]
    assert [each.tokens[0] for each in draft_tokens] == drawn


@pytest.mark.skipif(_kernels() is None, reason="no compiler")
def test_kernel_ranking_equals_torch() -> None:
    logits = _logits(ROWS, seed=2)
    noises = [_coupling(0.0 if row % 3 == 0 else 0.5 + row / 30, row) for row in range(ROWS)]
    ours = rank_draft_tokens(logits, range(ROWS), noises, 4, _kernels())
    reference = rank_draft_tokens(logits, range(ROWS), noises, 4, None)
    assert [each.tokens for each in ours] == [each.tokens for each in reference]
    for one, other in zip(ours, reference, strict=True):
        assert one.confidences == pytest.approx(other.confidences, abs=2e-3)


@pytest.mark.parametrize("kernels", WAYS)
def test_draft_tokens_do_not_depend_on_the_batch(kernels: Kernels | None) -> None:
    logits = _logits(ROWS, seed=3)
    noises = [_coupling(0.7)] * ROWS
    together = rank_draft_tokens(logits, range(ROWS), noises, 2, kernels)
    alone: list[DraftTokens] = []
    for row in range(ROWS):
        alone += rank_draft_tokens(logits[row : row + 1], [row], noises[:1], 2, kernels)
    assert together == alone


@pytest.mark.parametrize("kernels", WAYS)
def test_truncated_support_is_respected(kernels: Kernels | None) -> None:
    logits = _logits(ROWS, seed=4)
    seed = (5).to_bytes(8, "little")
    noise = SharedNoise(temperature=1.0, top_k=3, top_p=0.9, min_p=0.01, seed=seed)
    how = Sampling(temperature=1.0, top_k=3, top_p=0.9, min_p=0.01, seed=5)
    draft_tokens = rank_draft_tokens(logits, range(ROWS), [noise] * ROWS, 4, kernels)
    drawn = [draw(row, position, how) for position, row in enumerate(logits)]
    assert [each.tokens[0] for each in draft_tokens] == drawn
    assert all(len(each.tokens) <= 3 for each in draft_tokens)


@pytest.mark.parametrize("kernels", WAYS)
def test_confidence_is_the_share_of_correct_draft_tokens(kernels: Kernels | None) -> None:
    """Calibrated where the target's scores are the drafter's with Gumbel noise of their own."""
    logits = _logits(1, seed=6).repeat(DRAWS, 1)
    draft_tokens = rank_draft_tokens(logits, range(DRAWS), [_coupling(1.0)] * DRAWS, 1, kernels)
    chance = torch.Generator().manual_seed(7)
    expected = sum(each.confidences[0] for each in draft_tokens) / DRAWS
    coupled = torch.log_softmax(logits.double(), 1)
    noise = _noise()
    own = -torch.log(-torch.log(torch.rand(coupled.shape, generator=chance, dtype=torch.float64)))
    right = torch.argmax(coupled + noise + own, 1).tolist()
    agreed = sum(g.tokens[0] == r for g, r in zip(draft_tokens, right, strict=True)) / DRAWS
    assert abs(agreed - expected) < 4 * math.sqrt(0.25 / DRAWS)


@pytest.mark.parametrize("kernels", WAYS)
def test_nan_logits_give_valid_token_ids(
    kernels: Kernels | None,
) -> None:
    logits = torch.full((1, VOCABULARY), math.nan)
    [draft_tokens] = rank_draft_tokens(logits, [0], [SharedNoise()], 2, kernels)
    assert all(0 <= token < VOCABULARY for token in draft_tokens.tokens)


@pytest.mark.parametrize("kernels", WAYS)
@pytest.mark.parametrize("gap", [0.2, 0.6, 1.2])
def test_drafter_and_target_agree_as_often_as_the_bound(
    gap: float, kernels: Kernels | None
) -> None:
    """(1 - TV) / (1 + TV) for coupled Gumbel noise (Daliri et al., theorem 3)."""
    target, drawn = _drawn_by_the_target()
    drafter = target + gap * _logits(1, seed=4)[0] / 3
    distance = 0.5 * float((torch.softmax(target, 0) - torch.softmax(drafter, 0)).abs().sum())
    rows = drafter.repeat(DRAWS, 1)
    draft_tokens = rank_draft_tokens(rows, range(DRAWS), [_coupling(1.0)] * DRAWS, 1, kernels)
    agreed = sum(t == each.tokens[0] for t, each in zip(drawn, draft_tokens, strict=True)) / DRAWS
    bound = (1 - distance) / (1 + distance)
    assert agreed > bound - 3 * math.sqrt(bound * (1 - bound) / DRAWS) - 1e-9
