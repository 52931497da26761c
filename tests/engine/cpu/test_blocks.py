"""Weights of 8 and 4 bits: the products are exact after rounding, and rows are independent."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.cpu.blocks import (
    are_nibbles,
    round_weights,
    rounding_inputs,
    to_blocks,
    to_nibbles,
)
from edgecosine.engine.cpu.kernel_library import (
    KernelsUnavailable,
    load_kernels,
)
from edgecosine.engine.cpu.native_llama import NativeLlama, can_fuse
from edgecosine.engine.cpu.native_structs import WeightLayout
from edgecosine.engine.cpu.packing import BLOCK_SIZE, PackedLinear
from edgecosine.engine.loading.load import load_target
from edgecosine.engine.loading.selftest import check_family, error_of, take_reference
from edgecosine.engine.options import LoadOptions, WeightForm
from edgecosine.engine.slot_model import SlotModel
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.errors import ModelUnsupported
from tests.engine.decoding import decode, nothing, random_trees
from tests.engine.loading.test_selftest import ROWS, ChangedRows
from tests.engine.models import VOCABULARY, build, build_deep, prompt_of, save

try:
    KERNELS = load_kernels()
except KernelsUnavailable as error:
    pytest.skip(str(error), allow_module_level=True)

FORMS: tuple[WeightForm, ...] = ("int8", "int4")
SHAPES = [(16, 8), (33, 257), (768, 256), (211, 1000), (1, 3)]
WAYS = [("llama", "fused", "int8"), ("llama", "fused", "int4"), ("qwen3", "fused", "int4"),
        ("gemma2", "layers", "int4"),
        ("gpt2", "layers", "int8"), ("qwen3_moe", "layers", "int8")]  # fmt: skip


def _linear(inputs: int, outputs: int, form: WeightForm, *, bias: bool = True) -> nn.Linear:
    """A layer whose weights are in the form already."""
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=bias)
    round_weights(linear, form)
    return linear


def _packed(linear: nn.Linear, form: WeightForm, threads: int = 1) -> PackedLinear:
    packed = PackedLinear(linear.weight, linear.bias, KERNELS, threads, torch.float32, form)
    assert packed._layout is (WeightLayout.NIBBLES if form == "int4" else WeightLayout.BYTES)
    return packed


def _by_definition(x: torch.Tensor, linear: nn.Linear) -> torch.Tensor:
    """The same product in float64, of the rounded inputs."""
    linear = copy.deepcopy(linear)
    with rounding_inputs(linear):
        rounded: list[torch.Tensor] = []
        linear.register_forward_pre_hook(lambda _, inputs: rounded.append(inputs[0]))
        linear(x)
    bias = None if linear.bias is None else linear.bias.double()
    return nn.functional.linear(rounded[0].double(), linear.weight.double(), bias)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_product_rounds_inputs_only(outputs: int, inputs: int, form: WeightForm) -> None:
    linear, x = _linear(inputs, outputs, form), torch.randn(13, inputs)
    x[4], x[5, 0] = 0.0, 300.0
    found = _packed(linear, form)(x)
    torch.testing.assert_close(found.double(), _by_definition(x, linear), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_wide_product_rounds_nothing(outputs: int, inputs: int, form: WeightForm) -> None:
    linear, x = _linear(inputs, outputs, form), torch.randn(9, inputs)
    packed = _packed(linear, form)
    packed.is_wide = True
    torch.testing.assert_close(packed(x), linear(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_rows_do_not_depend_on_batch_or_threads(
    outputs: int, inputs: int, form: WeightForm
) -> None:
    linear, x = _linear(inputs, outputs, form), torch.randn(150, inputs)
    whole = _packed(linear, form)(x)
    for threads in (1, 2, 3):
        packed = _packed(linear, form, threads)
        for rows in (1, 2, 3, 5, 7, 8, 12, 13, 25, 149):
            assert torch.equal(packed(x[-rows:]), whole[-rows:])


def test_8_bit_values_are_packed_without_loss() -> None:
    """A file in Q8_0 has the same blocks."""
    torch.manual_seed(0)
    values = torch.randint(-127, 128, (50, 4, BLOCK_SIZE)).float()
    values[..., 0] = 127
    scales = torch.rand(50, 4).half()
    found = to_blocks((values * scales.float()[..., None]).flatten(1))
    assert torch.equal(found.values.float(), values)
    assert torch.equal(found.scales, scales)
    zeros = to_blocks(torch.zeros(2, 40))
    assert not zeros.values.any()
    assert not zeros.scales.any()


@pytest.mark.parametrize("most", [15, 11, 1, 0])
def test_4_bit_values_are_packed_without_loss(most: int) -> None:
    """A file in Q4_1 has the same blocks; those of Q4_K may not use all 16 values."""
    torch.manual_seed(0)
    values = torch.randint(0, most + 1, (50, 4, BLOCK_SIZE)).float()
    scales, minima = torch.rand(50, 4).half().float(), torch.randn(50, 4).half().float()
    weights = (values * scales[..., None] + minima[..., None]).flatten(1)
    found, is_whole = to_nibbles(weights)
    assert is_whole
    torch.testing.assert_close(found.weights(weights.shape[1]), weights, rtol=0, atol=1e-3)
    again = found.weights(weights.shape[1])
    assert torch.equal(to_nibbles(again)[0].weights(weights.shape[1]), again)
    assert not to_nibbles(torch.randn(3, 64))[1]


def test_only_layers_that_may_lose_digits_are_rounded_to_4_bits() -> None:
    def layers() -> list[nn.Linear]:
        torch.manual_seed(0)
        found = [nn.Linear(64, 32, bias=False) for _ in range(3)]
        round_weights(found[0], "int4")
        return found

    for is_file_kept, expected in ((False, [True, True, False]), (True, [True, False, False])):
        model = nn.Sequential(*layers())
        before = [layer.weight.clone() for layer in layers()]
        round_weights(model, "int4", model[2], is_file_kept=is_file_kept)
        weights = [layer.get_parameter("weight") for layer in model]
        assert list(map(are_nibbles, weights)) == expected
        assert torch.equal(weights[0], before[0])
        for weight, old in zip(weights, before, strict=True):
            torch.testing.assert_close(weight, old, rtol=0, atol=0.02)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_inputs_give_nan_outputs(value: float, form: WeightForm) -> None:
    x = torch.randn(3, 64)
    x[1, 7] = value
    found = _packed(_linear(64, 20, form), form)(x)
    assert not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()


def _runner(way: str, model: nn.Module, form: WeightForm) -> NativeLlama | SlotModel:
    kind = NativeLlama if way == "fused" else SlotModel
    return kind(model, slots=1, slot_size=96, threads=1, kernels=KERNELS, form=form)  # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "way", "form"), WAYS)
def test_self_test_of_models_in_blocks_detects_mistakes(
    family: str, way: str, form: WeightForm
) -> None:
    model = build_deep(family, layers=30, dtype=torch.float32)
    round_weights(model, form)
    reference = take_reference(model, 256, form)
    runner = _runner(way, model, form)
    check_family(runner, reference, family)
    for change in ROWS.values():
        with pytest.raises(ModelUnsupported, match="inputs of 8 bits"):
            check_family(ChangedRows(runner, change), reference, family)


@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("llama", "int8"),
        ("llama", "int4"),
        ("qwen3", "int4"),
        ("gemma2", "int8"),
        ("gpt2", "int4"),
        ("gpt_oss", "int8"),
        ("mixtral", "int4"),
        ("olmoe", "int8"),
        ("qwen2_moe", "int4"),
        ("qwen3_moe", "int8"),
    ],
)
def test_answers_of_models_in_blocks_do_not_depend_on_drafts(
    family: str, form: WeightForm, tmp_path: Path
) -> None:
    model = build(family)
    where = save(model, tmp_path)
    options = LoadOptions(where, threads=1, slots=2, context=96, device="cpu", weights=form)
    engine, loaded = load_target(options)
    assert isinstance(engine, TransformerTarget)
    assert loaded.exactness == "bitwise"
    assert loaded.form == form
    if can_fuse(model):
        assert isinstance(engine._model, NativeLlama)
    prompts = [prompt_of(20), prompt_of(9, seed=4)]
    answers = [decode(engine, [prompt], 30, [nothing])[0][0] for prompt in prompts]
    drafts = [
        random_trees(prompt + answer, VOCABULARY, seed=1)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    found, accepted = decode(engine, prompts, 30, drafts)
    assert found == answers
    assert accepted > 10


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "mixtral"])
def test_stock_model_rounds_inputs_where_blocks_do(family: str) -> None:
    """The self-test compares with it. A sharp comparison needs one layer."""
    model = build(family, layers=1)
    round_weights(model)
    tokens = prompt_of(24)
    with torch.inference_mode():
        plain = model(torch.tensor([tokens])).logits[0]
        with rounding_inputs(model):
            rounded = model(torch.tensor([tokens])).logits[0]
    rows = RowBuilder()
    rows.add_sequence(0, 0, tokens)
    found = _runner("layers", model, "int8").forward(rows.build(), range(len(tokens)))
    assert error_of(found, rounded) < 0.05 * error_of(plain, rounded)


def test_tied_embedding_has_the_same_numbers_as_the_output_layer() -> None:
    model = build("llama", tie_word_embeddings=True)
    round_weights(model)
    fused = NativeLlama(model, slots=1, slot_size=96, threads=1, kernels=KERNELS, form="int8")
    check_family(fused, take_reference(model, 256, "int8"), "llama")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "bfloat16"}, "--dtype bfloat16"),
        ({"tensor_parallel": 2}, "--tensor-parallel"),
        ({"quantize": "int8"}, "--quantize"),
    ],
)
def test_options_incompatible_with_8_bits_are_refused(
    changes: dict[str, object], reason: str, tmp_path: Path
) -> None:
    where = save(build("llama"), tmp_path)
    options = LoadOptions(where, device="cpu", weights="int8", **changes)  # type: ignore[arg-type]
    with pytest.raises(ModelUnsupported, match=f"--weights int8 is not available: .*{reason}"):
        load_target(options)


@pytest.mark.parametrize(("form", "size"), [("int8", 34), ("int4", 20)])
def test_layers_in_blocks_are_smaller(form: WeightForm, size: int) -> None:
    assert _packed(_linear(256, 512, form), form).packed.numel() == 256 * 512 * size // 32
