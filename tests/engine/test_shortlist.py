"""An output layer for a shortlist gives the logits of the whole layer, and -inf elsewhere."""

from __future__ import annotations

import pytest
import torch

from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.cpu.kernel_library import KernelsUnavailable, load_kernels
from edgecosine.engine.cpu.native_llama import NativeLlama
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.slot_model import SlotModel
from tests.engine.models import VOCABULARY, build, cut_head, prompt_of

SHORTLIST = torch.tensor([0, 3, 17, 18, 101, 200])


def logits_of(model: ForwardModel) -> torch.Tensor:
    rows = RowBuilder()
    rows.add_sequence(0, 0, prompt_of(9, seed=1))
    return model.forward(rows.build(), range(9))


@pytest.mark.parametrize("way", ["kernels, fused", "kernels, layered", "torch"])
def test_shortlist_logits_equal_those_of_the_whole_layer(way: str) -> None:
    try:
        kernels = None if way == "torch" else load_kernels()
    except KernelsUnavailable as why:
        pytest.skip(str(why))

    def run(*, is_cut: bool) -> torch.Tensor:
        modules = build("llama")
        if is_cut:
            cut_head(modules, SHORTLIST)
        if kernels is not None and way.endswith("fused"):
            return logits_of(
                NativeLlama(modules, slots=1, slot_size=16, threads=1, kernels=kernels)
            )
        return logits_of(SlotModel(modules, slots=1, slot_size=16, threads=1, kernels=kernels))

    whole, cut = run(is_cut=False), run(is_cut=True)
    others = torch.ones(VOCABULARY, dtype=torch.bool)
    others[SHORTLIST] = False
    assert torch.isneginf(cut[:, others]).all()
    torch.testing.assert_close(cut[:, SHORTLIST], whole[:, SHORTLIST])
