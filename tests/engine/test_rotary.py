"""Rotary embeddings depend on the length of their own sequence alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from edgecosine.engine.attention import BatchRows
from edgecosine.engine.base import DraftWork
from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.cuda.padded_model import PaddedModel
from edgecosine.engine.draft.drafter import TransformerDrafter
from edgecosine.engine.loading.load import load_drafter, load_target
from edgecosine.engine.options import LoadOptions
from edgecosine.engine.rotary import LONG, mark_of, switching_length
from edgecosine.engine.slot_model import SlotModel
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.errors import ModelUnsupported
from edgecosine.protocol.wire.messages import SharedNoise
from edgecosine.protocol.wire.tree import ROOT
from tests.engine.decoding import decode, nothing, random_trees
from tests.engine.models import VOCABULARY, build, prompt_of, save

TURN = 64
LONGROPE: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 9.0, 16.0],
        "original_max_position_embeddings": TURN,
    },
    "original_max_position_embeddings": TURN,
}
DYNAMIC: dict[str, Any] = {
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
}
SHORT, CROSSING, LAST, BEYOND = 20, TURN - 9, TURN, 150
LENGTH = 24


def _stock(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    inner: Any = model
    ids = torch.tensor([prompt])
    generated = inner.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=LENGTH, do_sample=False,
        eos_token_id=None, pad_token_id=0, use_cache=False,
    )  # fmt: skip
    return generated[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(build("phi3", **LONGROPE), tmp_path_factory.mktemp("models") / "phi3")


def _target(where: str) -> TransformerTarget:
    engine, _ = load_target(LoadOptions(where, threads=1, slots=4))
    assert isinstance(engine, TransformerTarget)
    return engine


@pytest.fixture(scope="module")
def truths() -> dict[int, list[int]]:
    model = build("phi3", **LONGROPE)
    return {n: _stock(model, prompt_of(n)) for n in (SHORT, CROSSING, LAST, BEYOND)}


def test_answers_equal_transformers_in_any_batch(phi3: str, truths: dict[int, list[int]]) -> None:
    engine = _target(phi3)
    prompts = [prompt_of(n) for n in truths]
    expected = list(truths.values())
    assert decode(engine, prompts, LENGTH, [nothing] * 4)[0] == expected
    for prompt, answer in zip(prompts, expected, strict=True):
        assert decode(engine, [prompt], LENGTH, [nothing])[0] == [answer]


def test_drafts_do_not_change_an_answer_beyond_the_switching_length(
    phi3: str, truths: dict[int, list[int]]
) -> None:
    engine = _target(phi3)
    prompts = [prompt_of(n) for n in truths]
    trees = [
        random_trees(prompt + answer, VOCABULARY, seed=n)
        for n, (prompt, answer) in enumerate(zip(prompts, truths.values(), strict=True))
    ]
    assert decode(engine, prompts, LENGTH, trees)[0] == list(truths.values())


def test_prefix_of_the_other_kind_is_not_reused(phi3: str) -> None:
    engine = _target(phi3)
    long = prompt_of(BEYOND)
    [fresh], _ = decode(engine, [long[:SHORT]], 4, [nothing])
    decode(engine, [long], 4, [nothing])
    assert decode(engine, [long[:SHORT]], 4, [nothing])[0] == [fresh]


def test_drafter_changes_factors_at_the_same_length_as_the_target(phi3: str) -> None:
    target, drafter = (_target(phi3), load_drafter(LoadOptions(phi3, threads=1, slots=1))[0])
    assert isinstance(drafter, TransformerDrafter)
    prompt = prompt_of(BEYOND)
    [truth], _ = decode(target, [prompt], 2, [nothing])
    work = DraftWork("s", tuple(prompt), 3, 1, SharedNoise(), None)
    [proposal] = drafter.draft([work])
    node = ROOT
    for token in truth:
        children = [i for i, parent in enumerate(proposal.parents) if parent == node]
        assert token in [proposal.tokens[child] for child in children]
        node = next(child for child in children if proposal.tokens[child] == token)


@pytest.mark.parametrize("way", ["plain", "static"])
def test_rows_of_both_kinds_are_read_side_by_side(way: str) -> None:
    stock = build("phi3", **LONGROPE)
    truths = []
    for start, length in ((0, SHORT), (BEYOND, SHORT)):
        ids = torch.tensor([prompt_of(length)])
        positions = torch.arange(start, start + length)[None]
        truths.append(stock(input_ids=ids, position_ids=positions).logits[0])
    model = build("phi3", **LONGROPE)
    runner = (
        SlotModel(model, slots=2, slot_size=64, threads=1, kernels=None)
        if way == "plain"
        else PaddedModel(model, slots=2, slot_size=64, capture=None)
    )
    rows = RowBuilder()
    rows.add_sequence(0, 0, prompt_of(SHORT))
    rows.add_sequence(1, 0, prompt_of(SHORT), BEYOND + LONG)
    torch.testing.assert_close(
        runner.forward(rows.build(), range(2 * SHORT)), torch.cat(truths), atol=1e-4, rtol=1e-4
    )


def test_dynamic_frequencies_do_not_depend_on_the_batch() -> None:
    model = build("llama", max_position_embeddings=TURN, **DYNAMIC)
    runner = SlotModel(model, slots=1, slot_size=200, threads=1, kernels=None)

    def logits(furthest: int) -> torch.Tensor:
        rows = RowBuilder()
        rows.add_sequence(0, 0, prompt_of(8))
        rows.add_sequence(0, furthest, [5])
        return runner.forward(rows.build(), range(8))

    assert torch.equal(logits(20), logits(190))


def test_stock_longrope_depends_on_the_batch() -> None:
    """Shows that transformers itself fails, so that the tests above are meaningful."""
    model = build("phi3", **LONGROPE)
    ids = torch.tensor([prompt_of(SHORT)])
    alone = model(input_ids=ids).logits
    assert not torch.allclose(
        model(input_ids=ids, position_ids=torch.arange(SHORT)[None] + BEYOND).logits, alone
    )


def test_switching_length_comes_from_the_configuration() -> None:
    assert switching_length(build("phi3", **LONGROPE).config) == TURN
    assert switching_length(build("llama").config) == switching_length(build("gpt2").config) == 0
    assert [mark_of(n, TURN) for n in (TURN, TURN + 1)] == [0, LONG]
    assert mark_of(1000, 0) == 0


def test_layers_with_different_switching_lengths_are_refused() -> None:
    config = build("gemma3").config
    config.rope_parameters = {
        f"{kind}_attention": {**LONGROPE["rope_parameters"], "original_max_position_embeddings": n}
        for kind, n in (("full", 64), ("sliding", 32))
    }
    with pytest.raises(ModelUnsupported, match="32, 64"):
        switching_length(config)


def test_shift_changes_positions_but_not_kv_positions() -> None:
    rows = RowBuilder()
    rows.add_sequence(0, 3, [1, 2], 100)
    rows.add_node(0, 5, 7, [5], 100)
    built: BatchRows = rows.build()
    assert built.positions.tolist() == [103, 104, 105]
    assert built.kv_position.tolist() == [3, 4, 5]
