"""The training windows of drafters, and their loss."""

import numpy as np
import torch

from edgecosine.lab.zoo.distillation import (
    DistillationLoss,
    DistillationText,
    inherit_embedding,
    pool_batches,
)
from edgecosine.lab.zoo.models import VOCABULARY, new_drafter
from edgecosine.lab.zoo.training import TrainSettings, learning_rate_factor, windows


def pool(token: int, rows: int, length: int) -> DistillationText:
    tokens = np.full((rows, length), token, dtype=np.uint16)
    return DistillationText(tokens, np.full((rows, length - 1, 256), token, dtype=np.float16))


def test_batches_are_half_own_text_and_take_the_domains_in_turn() -> None:
    own = [pool(1, 8, 6), pool(2, 8, 6)]
    read = [pool(11, 8, 6), pool(12, 8, 6)]
    settings = TrainSettings(steps=1, rows=8, length=6)
    batches = pool_batches(own, read, settings)
    seen = [next(batches) for _ in range(4)]
    tokens = torch.cat([batch[0][:, 0] for batch in seen]).tolist()
    assert {token: tokens.count(token) for token in set(tokens)} == {1: 8, 2: 8, 11: 8, 12: 8}


def test_loss_is_cross_entropy_alone_for_a_perfect_student() -> None:
    drafter = new_drafter(1)
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        hidden = drafter.model(input_ids=tokens[:, :-1]).last_hidden_state
        loss = DistillationLoss(drafter, drafter.lm_head.weight, hard_share=0.0)
        assert abs(float(loss((tokens, hidden)))) < 1e-5
        loss = DistillationLoss(drafter, drafter.lm_head.weight, hard_share=1.0)
        hard = float(loss((tokens, hidden)))
    assert abs(hard - np.log(VOCABULARY)) < 0.5


def test_embedding_keeps_the_principal_directions_of_the_target() -> None:
    torch.manual_seed(0)
    head = torch.randn(VOCABULARY, 128) @ torch.randn(128, 256)
    drafter = new_drafter(1)
    scale = drafter.model.embed_tokens.weight.detach().std()
    inherit_embedding(drafter, head)
    weight = drafter.model.embed_tokens.weight.detach()
    assert abs(float(weight.std() / scale) - 1) < 1e-3
    wanted, got = head[:50] @ head[:50].T, weight[:50] @ weight[:50].T
    assert torch.allclose(got * (wanted[0, 0] / got[0, 0]), wanted, rtol=1e-2, atol=1.0)


def test_windows_take_sources_in_turn_and_depend_on_the_seed() -> None:
    sources = [np.full(50, value, dtype=np.uint16) for value in (3, 4)]
    settings = TrainSettings(steps=2, rows=4, length=8, accumulate=1)
    for window in windows(sources, settings):
        assert window.shape == (4, 9)
        assert window[:, 0].tolist() == [3, 4, 3, 4]


def test_schedule_warms_up_and_falls_towards_the_horizon() -> None:
    settings = TrainSettings(steps=100, warm_up=10, horizon=200)
    assert learning_rate_factor(0, settings) == 0.1
    assert learning_rate_factor(10, settings) == 1.0
    assert abs(learning_rate_factor(105, settings) - 0.5) < 1e-9
