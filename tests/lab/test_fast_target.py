"""Drafters beside a target that is hardly slower than they are: a pass takes 5 ms, a draft of four
tokens as long, and passes are slower while drafters compute on the other core of one machine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgecosine.lab.simulation.cluster import Scenario, SimulatedLoad, simulate
from edgecosine.lab.simulation.costs import Costs
from edgecosine.lab.simulation.texts import Texts, load_texts

TEXTS = load_texts()
COSTS = Costs(
    pass_s={1: 0.0051, 3: 0.0053, 4: 0.0060, 6: 0.0073, 8: 0.0088, 16: 0.0165, 64: 0.06},
    step_s={1: 0.00085, 6: 0.0013, 12: 0.0022, 48: 0.025},
    work_s=0.0001,
    plan_s={1: 0.0001, 4: 0.00015, 16: 0.0003},
    round_s=0.00025,
    message_s=0.00012,
    request_s=0.0003,
    hop_s=0.0001,
    delivery_s=0.0002,
    between_s=0.004,
    one_way_s=0.00015,
    contention=0.15,
)
REQUESTS = 8


def with_wrong_guesses(share: float) -> Texts:
    """The texts, with a share of positions at which all drafters are wrong, and less confident."""
    count, length, width = TEXTS.guesses.shape[1:]
    truth = TEXTS.answers[:, :length, None]
    wrong = (np.random.default_rng(0).random((count, length)) < share)[None, :, :, None]
    others = (truth + 1 + np.arange(width, dtype=np.uint16)) % np.uint16(4000)
    return replace(
        TEXTS,
        guesses=np.where(wrong, others, TEXTS.guesses).astype(np.uint16),
        shares=np.where(wrong, TEXTS.shares * 0.6, TEXTS.shares).astype(np.uint8),
    )


def speedups(share: float) -> list[float]:
    """Of six drafters over the target alone, for loads one after the other."""
    texts = with_wrong_guesses(share)
    scenario = Scenario(texts.drafters, is_core_shared=True, host="127.0.0.1")
    alone, *loads = (
        SimulatedLoad(policy, 1, REQUESTS, first_text=first)
        for policy, first in (("target-alone", 0), ("edgecosine", 0), ("edgecosine", REQUESTS))
    )
    [plain] = simulate(scenario, [alone], COSTS, texts)
    helped = simulate(scenario, loads, COSTS, texts)
    return [outcome.tokens_per_s / plain.tokens_per_s for outcome in helped]


@pytest.mark.parametrize("share", [0.6, 1.0])
def test_drafters_that_cannot_pay_cost_little_at_first_and_hardly_anything_later(
    share: float,
) -> None:
    cold, warm = speedups(share)
    assert cold >= 0.965
    assert warm >= 0.98


def test_good_drafters_are_used_by_a_fast_target() -> None:
    assert min(speedups(0.0)) > 1.15
