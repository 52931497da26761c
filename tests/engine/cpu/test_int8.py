"""8-bit weights: the products are exact after rounding, and rows are independent."""

from __future__ import annotations

import copy
import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from edgecosine.engine.cpu.kernel_library import (
    COMPILERS,
    FLAGS,
    SOURCES,
    KernelsUnavailable,
    load_kernels,
)
from edgecosine.engine.cpu.native_llama import NativeLlama, can_fuse
from edgecosine.engine.cpu.native_structs import WeightLayout
from edgecosine.engine.cpu.packing import (
    BLOCK_SIZE,
    PackedLinear,
    round_weights,
    rounding_inputs,
    to_blocks,
)
from edgecosine.engine.loading.load import load_target
from edgecosine.engine.loading.selftest import check_family, take_reference
from edgecosine.engine.options import LoadOptions
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

SHAPES = [(16, 8), (33, 257), (768, 256), (211, 1000), (1, 3)]
WAYS = [("llama", "fused"), ("qwen3", "fused"), ("qwen3", "layers"), ("gemma2", "layers"),
        ("gpt2", "layers")]  # fmt: skip


def _packed(linear: nn.Linear, threads: int = 1) -> PackedLinear:
    return PackedLinear(linear.weight, linear.bias, KERNELS, threads, torch.float32, "int8")


def _by_definition(x: torch.Tensor, linear: nn.Linear) -> torch.Tensor:
    """The same product in float64, of the rounded weights and inputs."""
    linear = copy.deepcopy(linear)
    round_weights(linear)
    with rounding_inputs(linear):
        rounded: list[torch.Tensor] = []
        linear.register_forward_pre_hook(lambda _, inputs: rounded.append(inputs[0]))
        linear(x)
    bias = None if linear.bias is None else linear.bias.double()
    return nn.functional.linear(rounded[0].double(), linear.weight.double(), bias)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_product_rounds_weights_and_inputs_only(outputs: int, inputs: int) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(inputs, outputs), torch.randn(13, inputs)
    x[4], x[5, 0] = 0.0, 300.0
    found = _packed(linear)(x)
    torch.testing.assert_close(found.double(), _by_definition(x, linear), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_wide_product_rounds_weights_only(outputs: int, inputs: int) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(inputs, outputs), torch.randn(9, inputs)
    packed = _packed(linear)
    packed.is_wide = True
    round_weights(linear)
    torch.testing.assert_close(packed(x), linear(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_rows_do_not_depend_on_batch_or_threads(outputs: int, inputs: int) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(inputs, outputs), torch.randn(70, inputs)
    whole = _packed(linear)(x)
    for threads in (1, 2):
        packed = _packed(linear, threads)
        for rows in (1, 2, 3, 5, 7, 8, 13, 25):
            assert torch.equal(packed(x[-rows:]), whole[-rows:])


def test_8_bit_values_are_packed_without_loss() -> None:
    """A file in Q8_0 has the same blocks."""
    torch.manual_seed(0)
    values = torch.randint(-127, 128, (50, 4, BLOCK_SIZE)).float()
    values[..., 0] = 127
    scales = torch.rand(50, 4).half()
    found, found_scales = to_blocks((values * scales.float()[..., None]).flatten(1))
    assert torch.equal(found.float(), values)
    assert torch.equal(found_scales, scales)
    zeros, none = to_blocks(torch.zeros(2, 40))
    assert not zeros.any()
    assert not none.any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_inputs_give_nan_outputs(value: float) -> None:
    x = torch.randn(3, 64)
    x[1, 7] = value
    found = _packed(nn.Linear(64, 20))(x)
    assert not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()


def _flags_of_processor() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())


VARIANTS = [
    ("portable", "-mavx -mfma", {"avx", "fma"}),
    ("AVX2", "-mavx2 -mfma -mf16c", {"avx2", "fma", "f16c"}),
    ("AVX512", "-mavx512f -mavx512bw -mavx512vl -mfma -mf16c", {"avx512bw", "avx512vl"}),
    ("AVX512 VNNI", "-mavx512vnni -mavx512bw -mavx512vl -mfma -mf16c", {"avx512_vnni"}),
    ("AVX VNNI", "-mavxvnni -mavx2 -mfma -mf16c", {"avx_vnni"}),
]


@pytest.fixture(scope="module")
def product() -> tuple[torch.Tensor, nn.Linear]:
    torch.manual_seed(0)
    return torch.randn(11, 300), nn.Linear(300, 70, bias=False)


@pytest.mark.parametrize(
    ("flags", "needed"), [v[1:] for v in VARIANTS], ids=[v[0] for v in VARIANTS]
)
def test_all_instruction_sets_give_equal_bits(
    flags: str, needed: set[str], product: tuple[torch.Tensor, nn.Linear], tmp_path: Path
) -> None:
    if missing := needed - _flags_of_processor():
        pytest.skip(f"this processor has no {', '.join(sorted(missing))}")
    compiler = next(filter(None, map(shutil.which, COMPILERS)))
    rest = [flag for flag in FLAGS if flag not in {"-O3", "-march=native"}]
    built = tmp_path / "variant.so"
    source = Path(__file__).with_name("variant.cpp")
    command = [
        compiler,
        "-O1",
        *flags.split(),
        *rest,
        f"-I{SOURCES}",
        str(source),
        "-o",
        str(built),
    ]
    subprocess.run(command, check=True, capture_output=True)
    library = ctypes.CDLL(os.fspath(built))
    x, linear = product
    values, scales = to_blocks(linear.weight.detach())
    size = -(-len(values) // library.panel()) * library.panel() * values.shape[1] * 34
    packed, found = torch.empty(size, dtype=torch.uint8), torch.empty(len(x), len(values))
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (values, scales, packed, x, found)]
    rows, outputs, blocks, inputs = map(ctypes.c_int64, (len(x), *values.shape[:2], x.shape[1]))
    library.pack(*pointers[:3], outputs, blocks)
    library.run(pointers[3], pointers[2], pointers[4], rows, outputs, inputs)
    assert torch.equal(found, _packed(linear)(x))


def _runner(way: str, model: nn.Module) -> NativeLlama | SlotModel:
    kind = NativeLlama if way == "fused" else SlotModel
    return kind(model, slots=1, slot_size=96, threads=1, kernels=KERNELS, form="int8")  # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "way"), WAYS)
def test_self_test_of_8_bit_models_detects_mistakes(family: str, way: str) -> None:
    model = build_deep(family, layers=30, dtype=torch.float32)
    round_weights(model)
    reference = take_reference(model, 256, "int8")
    runner = _runner(way, model)
    check_family(runner, reference, family)
    for change in ROWS.values():
        with pytest.raises(ModelUnsupported, match="inputs of 8 bits"):
            check_family(ChangedRows(runner, change), reference, family)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2"])
def test_answers_of_8_bit_models_do_not_depend_on_drafts(family: str, tmp_path: Path) -> None:
    model = build(family)
    where = save(model, tmp_path)
    options = LoadOptions(where, threads=1, slots=2, context=96, device="cpu", weights="int8")
    engine, loaded = load_target(options)
    assert isinstance(engine, TransformerTarget)
    assert loaded.exactness == "bitwise"
    assert loaded.form == "int8"
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


def test_layers_in_bytes_are_smaller() -> None:
    linear = nn.Linear(256, 512)
    assert _packed(linear)._layout is WeightLayout.BYTES
    assert _packed(linear).packed.numel() == 256 * 512 * 34 // 32
