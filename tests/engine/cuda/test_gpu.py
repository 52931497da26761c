"""On a GPU: recorded and eager forward passes, no waits for the device, quantised drafters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from edgecosine import zoo
from edgecosine.engine.base import DraftWork
from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.cuda.graphs import capture_for
from edgecosine.engine.cuda.padded_model import RUNS_TO_REPLAY, PaddedModel
from edgecosine.engine.draft.drafter import TransformerDrafter
from edgecosine.engine.loading.load import load_drafter, load_target
from edgecosine.engine.options import LoadOptions, Quantize
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.lab.distill.conversations import Conversation
from edgecosine.lab.distill.losses import AcceptanceLoss, batch_of
from edgecosine.lab.distill.recipe import DistillPaths, toy_recipe
from edgecosine.lab.distill.train import STAGES, make_drafters
from edgecosine.lab.distill.trainer import Trainer
from edgecosine.lab.exactness.divergence import count_diverging
from edgecosine.protocol.wire.messages import SharedNoise
from tests.engine.decoding import decode, nothing, random_trees
from tests.engine.loading.gguf_files import write_gguf
from tests.engine.models import FAMILIES, VOCABULARY, build, prompt_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda", 0)


def _rows(seed: int) -> RowBuilder:
    rows = RowBuilder()
    rows.add_sequence(0, 0, prompt_of(6, seed))
    rows.add_sequence(2, 0, prompt_of(1, seed))
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_pass_equals_eager_pass(family: str, dtype: torch.dtype) -> None:
    eager, recorded = (
        PaddedModel(build(family, dtype=dtype).to(CUDA), slots=4, slot_size=128, capture=capture)
        for capture in (None, capture_for(CUDA))
    )
    for seed in range(RUNS_TO_REPLAY + 2):
        rows = _rows(seed).build()
        torch.testing.assert_close(
            recorded.forward(rows, [5, 6]), eager.forward(rows, [5, 6]), atol=1e-3, rtol=1e-3
        )
    assert recorded._graphs or "moe" in family or family == "gpt_oss"


@contextmanager
def _no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graphs", ["on", "off"])
def test_pass_does_not_wait_for_the_device(graphs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECOSINE_GRAPHS", graphs)
    model = PaddedModel(build("llama").to(CUDA), slots=4, slot_size=128, capture=capture_for(CUDA))
    rows = _rows(0).build()
    for _ in range(RUNS_TO_REPLAY):
        model.forward(rows, [5])
    with _no_waiting():
        model.move(0, [5, 3], [4, 5])
        logits = model.forward(rows, [5])
    assert bool(model._graphs) == (graphs == "on")
    assert bool(logits.isfinite().all())


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_equal_transformers_generate(family: str) -> None:
    prompt = prompt_of(37)
    model = build(family).to(CUDA)
    output = model.generate(
        torch.tensor([prompt], device=CUDA), max_new_tokens=30, do_sample=False, eos_token_id=None
    )
    reference = output[0, 37:].tolist()
    static = PaddedModel(model, slots=4, slot_size=256, capture=capture_for(CUDA))
    engine = TransformerTarget(static, slots=4, max_context=192, chunk=16)
    assert decode(engine, [prompt], 30, [nothing])[0] == [reference]
    drafts = random_trees(prompt + reference, VOCABULARY, seed=1)
    speculated, accepted = decode(engine, [prompt], 30, [drafts])
    assert speculated == [reference]
    assert accepted > 5


@pytest.mark.parametrize("quantize", ["none", "nf4", "int8"])
def test_drafter_drafts_on_the_device(quantize: Quantize) -> None:
    if quantize != "none":
        pytest.importorskip("bitsandbytes")
    name = zoo.drafter_names()[0]
    options = LoadOptions(name, device="cuda:0", quantize=quantize, slots=4, context=256)
    drafter, loaded = load_drafter(options)
    assert isinstance(drafter, TransformerDrafter)
    assert isinstance(drafter._model, PaddedModel)
    assert loaded.quantization == quantize
    works = [
        DraftWork("a", prompt_of(20), 5, 1, SharedNoise()),
        DraftWork("b", prompt_of(30), 5, 1, SharedNoise(temperature=0.8, seed=bytes(8))),
    ]
    first = drafter.draft(works)
    for key in "ab":
        drafter.release(key)
    for _ in range(RUNS_TO_REPLAY):
        again = drafter.draft(works)
    assert [len(proposal.tokens) > 4 for proposal in first] == [True, True]
    assert again[0].tokens[0] == first[0].tokens[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rate_of_answers_that_rounding_changes(
    dtype: str, record_property: pytest.RecordProperty
) -> None:
    options = LoadOptions(zoo.TARGET, device="cuda:0", dtype=dtype, slots=8, context=256)
    engine, loaded = load_target(options)
    assert loaded.exactness == "rounding"
    assert loaded.codec is not None
    texts = [text for texts in zoo.prompts().values() for text in texts[:8]]
    diverging = count_diverging(engine, [loaded.codec.encode(text) for text in texts], 96)
    record_property("diverging", f"{diverging} of {len(texts)}")
    # float32 parts only where two logits are equal to seven digits.
    assert diverging <= (1 if dtype == "float32" else len(texts))


def test_conversations_are_written_and_learned_from_on_the_device(tmp_path: Path) -> None:
    """Every stage of the drafters' recipe, for a tiny target."""
    target = write_gguf(tmp_path / "tiny.gguf")
    recipe = replace(toy_recipe(), target=str(target))
    places = DistillPaths(tmp_path / "scratch", tmp_path / "out")
    make_drafters(recipe, places, "cuda:0", [])
    report = json.loads(places.report.read_text())
    assert report.keys() == STAGES.keys()
    assert report["generalist"]["steps"] > 0


def test_training_step_does_not_wait_for_the_device() -> None:
    student = cast(LlamaForCausalLM, build("llama").to(CUDA))
    student.set_attn_implementation("sdpa")
    trainer = Trainer(student, AcceptanceLoss(student.lm_head.weight.detach().clone()))
    width = student.config.hidden_size
    states = np.zeros((6, width), dtype=np.float16)
    tokens = np.arange(3, 12, dtype=np.uint16)
    batch = batch_of([Conversation("facts", 0.0, tokens, 3, states)] * 2)
    trainer.step(batch, 1e-3)
    with _no_waiting():
        overlap, _ = trainer.step(batch, 1e-3)
    assert bool(overlap.isfinite())
