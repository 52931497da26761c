"""Padded batches give the logits of the model, recorded or not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.cuda.graphs import Capture, capture_for
from edgecosine.engine.cuda.padded_attention import visible
from edgecosine.engine.cuda.padded_model import PaddedModel
from edgecosine.engine.cuda.padded_shapes import BatchInputs, BatchShape, arrange
from edgecosine.engine.loading.load_model import fixed_shapes
from edgecosine.engine.loading.selftest import take_reference
from edgecosine.engine.slot_model import SlotModel
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.protocol.wire.tree import TokenTree, chain
from tests.engine.decoding import decode, nothing, random_trees
from tests.engine.models import FAMILIES, VOCABULARY, build, prompt_of
from tests.engine.recording import FakeCapture, OnOneDevice

SLOT_SIZE = 256


def _static(
    family: str,
    slots: int = 4,
    capture: Capture | None = None,
    slot_size: int = SLOT_SIZE,
    cells: torch.dtype | None = None,
) -> PaddedModel:
    return PaddedModel(
        build(family), slots=slots, slot_size=slot_size, capture=capture, cells=cells
    )


def _plain(family: str, slots: int = 4, cells: torch.dtype | None = None) -> SlotModel:
    return SlotModel(
        build(family), slots=slots, slot_size=SLOT_SIZE, threads=1, kernels=None, cells=cells
    )


def _reference(family: str, prompt: list[int], length: int) -> list[int]:
    output = build(family).generate(
        torch.tensor([prompt]), max_new_tokens=length, do_sample=False, eos_token_id=None
    )
    answer: list[int] = output[0, len(prompt) :].tolist()
    return answer


@pytest.mark.parametrize(
    ("family", "recorded"),
    [
        *((family, True) for family in FAMILIES),
        ("llama", False),
        ("gemma2", False),
        *(
            pytest.param(family, False, marks=pytest.mark.soak)
            for family in FAMILIES
            if family not in {"llama", "gemma2"}
        ),
    ],
)
def test_answers_equal_transformers_generate(family: str, recorded: bool) -> None:
    prompts = [prompt_of(length, seed=length) for length in (37, 9, 24)]
    references = [_reference(family, prompt, 24) for prompt in prompts]
    capture = FakeCapture() if recorded else None
    model = _static(family, capture=capture)
    plain = TransformerTarget(model, slots=4, max_context=192, chunk=16)
    answers, _ = decode(plain, prompts, 24, [nothing] * 3)
    assert answers == references
    drafts = [
        random_trees(prompt + reference, VOCABULARY, seed=i)
        for i, (prompt, reference) in enumerate(zip(prompts, references, strict=True))
    ]
    for release in "012":
        plain.release(release)
    answers, accepted = decode(plain, prompts, 24, drafts)
    assert answers == references
    assert accepted > 15
    if capture is not None:
        assert capture.replayed > capture.recorded >= 3


def _tree(seed: int, size: int) -> TokenTree:
    tokens = prompt_of(size, seed)
    parents = [-1, *((i - 1 if i % 3 else max(-1, i - 3)) for i in range(1, size))]
    seen = set(zip(parents, tokens, strict=True))
    assert len(seen) == size
    return TokenTree(tuple(tokens), tuple(parents), (1.0,) * size, (1,) * size)


def _mixed_pass(slots: Sequence[int], seed: int, start: int = 0) -> tuple[RowBuilder, list[int]]:
    """A chunk of a prompt, a plain row and trees, each in its own slot."""
    rows, keep = RowBuilder(), []
    for turn, slot in enumerate(slots):
        length = start + (1 if turn == 1 else 5 + turn)
        rows.add_sequence(slot, start, prompt_of(length - start, seed + slot))
        keep.append(len(rows) - 1)
        if turn >= 2:
            keep.extend(range(len(rows), len(rows) + 3 + turn))
            rows.add_tree(slot, length, _tree(seed + slot, 3 + turn))
    return rows, keep


@pytest.mark.parametrize("slots", [(0, 1, 2, 3), (2, 0), (3, 1, 0)], ids=str)
@pytest.mark.parametrize(
    "family", ["llama", "mistral with a window", "gemma2", "gemma3", "gpt_oss", "gpt2"]
)
def test_logits_equal_those_of_the_plain_path(family: str, slots: tuple[int, ...]) -> None:
    static, recorded, plain = (
        _static(family),
        _static(family, capture=FakeCapture()),
        _plain(family),
    )
    for seed in range(4):
        rows, keep = _mixed_pass(slots, seed=100 * seed)
        expected = plain.forward(rows.build(), keep)
        for model in (static, recorded):
            torch.testing.assert_close(
                model.forward(rows.build(), keep), expected, atol=2e-5, rtol=1e-4
            )


def test_moved_kv_positions_are_attended_at_their_target() -> None:
    static, plain = _static("llama"), _plain("llama")
    for turn in range(3):
        for model in (static, plain):
            rows, keep = _mixed_pass((0, 1, 2, 3), seed=50 * turn)
            model.forward(rows.build(), keep)
            # Overlapping positions; several slots; one slot twice before the next forward pass.
            model.move(2, [8, 9], [7, 8])
            model.move(3, [10, 12], [8, 9])
            model.move(2, [8], [9])
        logits = []
        for model in (static, plain):
            rows = RowBuilder()
            rows.add_sequence(2, 10, prompt_of(2))
            rows.add_sequence(3, 10, prompt_of(3))
            logits.append(model.forward(rows.build(), [1, 4]))
        torch.testing.assert_close(*logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("cells", [None, torch.bfloat16, torch.int8], ids=str)
def test_copied_positions_are_attended_in_the_other_slot(cells: torch.dtype | None) -> None:
    logits = []
    recorded = _static("llama", capture=FakeCapture(), cells=cells)
    for model in (recorded, _plain("llama", cells=cells)):
        rows, _ = _mixed_pass((0, 1, 2, 3), seed=1)
        model.forward(rows.build(), [0])
        model.move(2, [8, 9], [6, 7])  # before the copy, though it waits for the next pass
        model.copy(2, 0, 0, 8)
        rows = RowBuilder()
        rows.add_sequence(0, 8, prompt_of(3))
        rows.add_sequence(2, 8, prompt_of(3))
        logits.append(model.forward(rows.build(), range(6)))
        torch.testing.assert_close(logits[-1][:3], logits[-1][3:])
    torch.testing.assert_close(*logits, atol=2e-5, rtol=1e-4)


def test_padding_does_not_change_the_bits_of_other_rows() -> None:
    """The same rows in the same shape, with other values in unused and padded positions."""
    first, second = _static("llama", slots=2), _static("llama", slots=2)
    other = RowBuilder()
    other.add_sequence(1, 0, prompt_of(90, seed=3))
    second.forward(other.build(), [0])
    rubbish = RowBuilder()
    rubbish.add_sequence(0, 0, prompt_of(90, seed=4))
    second.forward(rubbish.build(), [0])
    with torch.inference_mode():
        for stack in second._attention.stacks:
            stack[:, :, :, SLOT_SIZE:] = 1e4
    rows = RowBuilder()
    rows.add_sequence(0, 0, prompt_of(5))
    assert torch.equal(*(model.forward(rows.build(), [2, 4]) for model in (first, second)))


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    sizes=st.lists(st.integers(0, 9), min_size=5, max_size=5),
    window=st.sampled_from([0, 1, 4, 16]),
)
def test_visible_mask_matches_the_definition(
    lengths: list[int], sizes: list[int], window: int
) -> None:
    builder, expected = RowBuilder(), list[set[int]]()
    for slot, (length, size) in enumerate(zip(lengths, sizes, strict=False)):
        builder.add_sequence(slot, 0, [1] * length)
        sights = [list(range(i + 1)) for i in range(length)]
        if size:
            tree = _tree(slot, size)
            builder.add_tree(slot, length, tree)
            for node in range(size):
                above = (
                    range(length) if tree.parents[node] < 0 else sights[length + tree.parents[node]]
                )
                sights.append([*above, length + node])
        expected += [set(sight[-window:]) if window else set(sight) for sight in sights]
    rows = builder.build()
    shape, flat = arrange(rows, [0], slots=8, slot_size=128, scratch=100)
    inputs = BatchInputs.views(flat, shape)
    mask = visible(inputs, shape.num_visible, window)
    assert [set(row.nonzero()[:, 0].tolist()) for row in mask[: len(expected)]] == expected
    assert bool(mask.any(1).all())
    assert inputs.kv_position[len(expected) :].unique().tolist() in ([], [100])
    count = len(expected)
    assert inputs.row[inputs.grid[:count]].tolist() == list(range(count))
    groups = inputs.grid[:count] // shape.width
    assert inputs.group[groups].tolist() == rows.slot.tolist()


def test_shapes_are_few() -> None:
    shapes = set()
    for count in range(1, 9):
        for size in range(13):
            rows = RowBuilder()
            for slot in range(count):
                rows.add_sequence(slot, 40 + count, [1])
                rows.add_tree(slot, 41 + count, chain((2,) * size))
            shapes.add(arrange(rows.build(), [0] * count, slots=8, slot_size=320, scratch=300)[0])
    assert len(shapes) <= 24


def test_replay_reads_new_inputs() -> None:
    capture = FakeCapture()
    static, plain = _static("qwen2", capture=capture), _plain("qwen2")
    for step in range(6):
        rows = RowBuilder()
        rows.add_sequence(step % 4, 0, prompt_of(7, seed=step))
        keep = [6, step] if step < 6 else [6]
        torch.testing.assert_close(
            static.forward(rows.build(), keep), plain.forward(rows.build(), keep),
            atol=2e-5, rtol=1e-4,
        )  # fmt: skip
    assert (capture.recorded, capture.replayed) == (1, 5)


def test_results_outlive_the_next_pass() -> None:
    static = _static("llama", capture=FakeCapture())
    rows = RowBuilder()
    rows.add_sequence(0, 0, prompt_of(6))
    other = RowBuilder()
    other.add_sequence(0, 0, prompt_of(6, seed=1))
    for _ in range(3):
        first = static.forward(rows.build(), [5])
    kept = first.clone()
    static.forward(other.build(), [5])
    assert torch.equal(first, kept)


def test_family_that_cannot_be_recorded_runs_eagerly_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A layer whose control flow depends on data waits for the device."""
    model = build("llama")
    model.model.norm.register_forward_hook(
        lambda _module, _args, out: out * (1 + (out[0, 0, 0] > 1e9).item())
    )
    capture = FakeCapture()
    static = PaddedModel(model, slots=4, slot_size=SLOT_SIZE, capture=capture)
    plain = _plain("llama")
    for seed in range(4):
        rows, keep = _mixed_pass((0, 2, 1), seed=seed)
        with caplog.at_level(logging.WARNING):
            logits = static.forward(rows.build(), keep)
        torch.testing.assert_close(logits, plain.forward(rows.build(), keep), atol=2e-5, rtol=1e-4)
    assert capture.recorded == 0
    assert caplog.text.count("CUDA graphs off") == 1
    assert "not permitted when stream is capturing" in caplog.text


@pytest.mark.parametrize("family", FAMILIES)
def test_pass_stays_on_its_device(family: str) -> None:
    """On the meta device, operations that read or copy values fail."""
    with torch.device("meta"):
        model = build(family, dtype=torch.bfloat16)
    static = PaddedModel(model, slots=4, slot_size=SLOT_SIZE, capture=None)
    shape = BatchShape(rows=16, keep=8, groups=2, width=16, num_visible=128, path=8)
    numbers = torch.zeros(sum(shape.sizes), dtype=torch.int64, device="meta")
    with torch.inference_mode(), OnOneDevice():
        logits = static._compute(shape, numbers)
    assert logits.shape == (8, VOCABULARY)


def test_no_graphs_without_a_gpu_or_when_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert capture_for(torch.device("cpu")) is None
    monkeypatch.setenv("EDGECOSINE_GRAPHS", "off")
    assert capture_for(torch.device("cuda")) is None


def test_fixed_shapes_are_not_used_when_logits_differ(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build("llama")
    reference = take_reference(model, 64)
    assert isinstance(fixed_shapes(model, reference, 2, 64), PaddedModel)
    assert fixed_shapes(model, replace(reference, truth=reference.truth.flip(0)), 2, 64) is None
    assert "fixed batch shapes off" in caplog.text
