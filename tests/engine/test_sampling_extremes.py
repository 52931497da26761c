"""For all parameters that the API accepts, a draw equals the definition in double precision."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecosine.engine.cpu.kernel_library import Kernels, KernelsUnavailable, load_kernels
from edgecosine.engine.draft.draft_sampling import rank_draft_tokens
from edgecosine.engine.gumbel import gumbel
from edgecosine.engine.sampling import adjust, draw
from edgecosine.node.target.shared_noise import noise_of
from edgecosine.protocol.api.openai import RequestLimits, parse_request
from edgecosine.protocol.api.request import MIN_REPETITION_PENALTY, MIN_TEMPERATURE, Sampling

SIZE = 700
"""More than the first size that top-p examines."""
SMALLEST = 5e-324
TINY = [SMALLEST, 1e-46, 1e-45, 1.4e-45, 1e-40, 1e-38, 1.2e-38, 1e-30, 1e-10, sys.float_info.min]
few = settings(max_examples=300)


def tiny_or(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers of a range, with its ends and values at the limits of float32."""
    inside = [each for each in (*TINY, low, high) if low <= each <= high]
    return st.sampled_from(inside) | st.floats(low, high)


bodies = st.fixed_dictionaries(
    {
        "temperature": tiny_or(0.0, 2.0) | st.sampled_from([MIN_TEMPERATURE, 9.9e-7]),
        "top_k": st.sampled_from([-1, 0, 1, 2, SIZE, 2**31 - 1]),
        "top_p": tiny_or(SMALLEST, 1.0) | st.just(1.0),
        "min_p": tiny_or(0.0, 1.0) | st.just(0.0),
        "seed": st.integers(-(2**63), 2**64 - 1),
        "presence_penalty": tiny_or(-2.0, 2.0),
        "frequency_penalty": tiny_or(-2.0, 2.0),
        "repetition_penalty": tiny_or(MIN_REPETITION_PENALTY, 10.0),
        "logit_bias": st.dictionaries(
            st.integers(0, SIZE - 1).map(str), tiny_or(-100.0, 100.0), max_size=3
        ),
    }
)


def accepted(body: dict[str, Any]) -> Sampling:
    """The sampling parameters that the API reads from a body."""
    return parse_request(
        "completion", {"prompt": "x", **body},
        client_id="a", request_id="1", limits=RequestLimits(), draw_seed=lambda: 0,
    ).sampling  # fmt: skip


def logits_of(seed: int) -> torch.Tensor:
    """Steep and flat rows, with the highest logit at an index chosen by the seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SIZE, generator=generator) * (0.1, 1.0, 8.0, 100.0)[seed % 4]


def scores_of(adjusted: torch.Tensor, how: Sampling, position: int) -> torch.Tensor:
    """Gumbel scores of all tokens by the definition, in double precision; -inf where cut."""
    logits = adjusted.double()
    if how.is_greedy:
        return logits
    logprobs = torch.log_softmax((logits - logits.max()) / how.temperature, 0)
    logprobs, tokens = torch.sort(logprobs, descending=True, stable=True)
    rank = torch.arange(SIZE)
    keep = rank < (how.top_k or SIZE)
    logprobs = torch.log_softmax(logprobs.masked_fill(~keep, -torch.inf), 0)
    mass = torch.cumsum(logprobs.exp(), 0) - logprobs.exp()
    # float32 sums may put a token on the other side of a boundary.
    keep &= (rank == 0) | (mass < how.top_p + 1e-5)
    keep &= logprobs.exp() >= how.min_p * logprobs[0].exp() * (1 - 1e-5)
    logprobs = torch.log_softmax(logprobs.masked_fill(~keep, -torch.inf), 0)
    scores = torch.empty(SIZE, dtype=torch.double)
    scores[tokens] = logprobs + gumbel(how.seed, position, tokens)
    return scores


@few
@given(bodies, st.integers(0, 400), st.lists(st.integers(0, SIZE - 1), max_size=9))
def test_draw_equals_the_definition(body: dict[str, Any], row: int, answer: list[int]) -> None:
    how, logits = accepted(body), logits_of(row)
    token = draw(logits, row, how, answer, prompt=[4, int(logits.argmax())])
    adjusted = adjust(logits, answer, [4, int(logits.argmax())], how)
    assert adjusted.isfinite().all()
    scores = scores_of(adjusted, how, row)
    assert scores[token] >= scores.max() - 1e-3


@few
@given(bodies, st.integers(0, 400))
def test_no_truncation_removes_the_most_probable_token(body: dict[str, Any], row: int) -> None:
    how = replace(accepted(body), top_p=SMALLEST)
    logits = logits_of(row)
    assert draw(logits, row, how) == int(adjust(logits, [], [], how).argmax())


@pytest.fixture(scope="module", params=["kernels", "torch"])
def kernels(request: pytest.FixtureRequest) -> Kernels | None:
    if request.param == "torch":
        return None
    try:
        return load_kernels()
    except KernelsUnavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("temperature", [*TINY, 9.9e-7, MIN_TEMPERATURE, 1e-3, 1.0])
@pytest.mark.parametrize(
    "cut", [{}, {"top_p": 1e-46}, {"min_p": SMALLEST}, {"top_k": 3}, {"top_k": 3, "top_p": 1e-40}]
)
def test_drafter_with_the_targets_logits_drafts_the_targets_token(
    temperature: float, cut: dict[str, Any], kernels: Kernels | None
) -> None:
    for row in range(20):
        how, logits = accepted({"temperature": temperature, "seed": row, **cut}), logits_of(row)
        [found] = rank_draft_tokens(logits[None], [row], [noise_of(how)], 4, kernels)
        scores, token = scores_of(logits, how, row), draw(logits, row, how)
        assert scores[found.tokens[0]] >= scores[token] - 1e-3
        assert all(0.0 <= confidence <= 1.001 for confidence in found.confidences)


@pytest.mark.parametrize(
    "change",
    [
        {"top_p": 1e-46},
        {"temperature": 1e-38},
        {"temperature": 1e-38, "top_k": 5},
        {"temperature": 1e-38, "top_p": 0.9},
        {"temperature": 1e-38, "min_p": 0.1},
        {"repetition_penalty": 1e-38},
        {"repetition_penalty": 1e-38, "top_p": 0.9},
    ],
)
def test_engine_accepts_values_beyond_the_api_limits(change: dict[str, Any]) -> None:
    logits = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 5
    best = int(logits.argmax())
    how = Sampling(**{"temperature": 1.0, "seed": 3, **change})
    assert draw(logits, 7, how, answer=[best], prompt=[4]) == best
