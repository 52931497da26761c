"""Rounding of drafters to 4 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgecosine.engine.cpu.blocks import are_nibbles, to_nibbles
from edgecosine.engine.loading.cut_models import load_cut_model, read_cut_config
from edgecosine.engine.loading.sources import locate
from edgecosine.lab.distill.conversations import Conversation
from edgecosine.lab.distill.export import write_drafter
from edgecosine.lab.distill.rounding import round_rows, round_student
from edgecosine.lab.distill.student import cut
from edgecosine.lab.distill.teacher import load_stock
from tests.engine.loading.gguf_files import TOKENS, write_gguf


@pytest.mark.parametrize("inputs", [64, 80])
def test_products_have_smaller_errors_than_those_of_nearest_values(inputs: int) -> None:
    generator = torch.Generator().manual_seed(1)
    mixture = torch.randn(8, inputs, generator=generator)
    x = torch.randn(500, 8, generator=generator) @ mixture
    x += 0.3 * torch.randn(x.shape, generator=generator)
    weight = torch.randn(24, inputs, generator=generator)
    nearest = to_nibbles(weight)[0].weights(inputs)
    rounded = round_rows(weight, x.T @ x)
    assert are_nibbles(rounded)
    errors = [((x @ (weight - other).T) ** 2).mean() for other in (rounded, nearest)]
    assert errors[0] < 0.5 * errors[1]


def test_values_of_4_bits_stay_as_they_are() -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randint(0, 16, (4, 64), generator=generator)
    values[:, ::32], values[:, 1::32] = 0, 15
    weight = 0.25 * values.float() - 2
    torch.testing.assert_close(round_rows(weight, torch.eye(64)), weight)


def test_file_has_the_rounded_weights(tmp_path: Path) -> None:
    target = write_gguf(tmp_path / "tiny.gguf")
    tokens = torch.arange(0, len(TOKENS), 2)
    student = cut(load_stock(str(target), torch.float32), (0, 1), tokens)
    before = student.lm_head.weight.clone()
    ids = torch.randint(len(TOKENS), (40,), generator=torch.Generator().manual_seed(3)).numpy()
    states = torch.zeros(30, student.config.hidden_size).numpy()
    round_student(student, [Conversation("code", 0.0, ids, 10, states)])
    assert not torch.equal(student.lm_head.weight, before)
    path = tmp_path / "rounded.gguf"
    write_drafter(path, student, tokens, target.name, "Q4_1", "rounded")
    source = locate(str(path))
    loaded = load_cut_model(source, read_cut_config(source), torch.float32)
    for name, weight in student.model.layers.named_parameters():
        found = loaded.model.layers.get_parameter(name)
        torch.testing.assert_close(found, weight, rtol=1e-3, atol=1e-4)
