"""Products of blocks have equal bits by all sets of instructions."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from edgecosine.engine.cpu.blocks import BYTES_OF_BLOCK, round_weights, to_blocks, to_nibbles
from edgecosine.engine.cpu.kernel_library import COMPILERS, FLAGS, SOURCES
from edgecosine.engine.cpu.packing import BLOCK_SIZE
from edgecosine.engine.options import WeightForm

pytestmark = pytest.mark.timeout(600)  # compilers run
FORMS: tuple[WeightForm, ...] = ("int8", "int4")
INPUTS, OUTPUTS = 300, 70
PORTABLE = "-mavx -mfma"
AVX2 = "-mavx2 -mfma -mf16c"
AVX512 = "-mavx512f -mavx512bw -mavx512vl -mfma -mf16c"
VNNI = f"{AVX512} -mavx512vnni"
TILES = f"-DEDGECOSINE_EMULATED_TILES -I{Path(__file__).parent}"
NEEDS = {
    PORTABLE: {"avx", "fma"},
    AVX2: {"avx2", "fma", "f16c"},
    AVX512: {"avx512bw", "avx512vl"},
    VNNI: {"avx512_vnni"},
    "-mavxvnni -mavx2 -mfma -mf16c": {"avx_vnni"},
}
Build = Callable[[str], ctypes.CDLL]


def _compiler() -> str:
    if found := next(filter(None, map(shutil.which, COMPILERS)), None):
        return found
    pytest.skip("no C++ compiler found")


def _flags_of_processor() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compile the products with flags, once each."""
    built: dict[str, Path] = {}

    def load(flags: str) -> ctypes.CDLL:
        needed = next((needs for set_, needs in NEEDS.items() if flags.startswith(set_)), set())
        if missing := needed - _flags_of_processor():
            pytest.skip(f"this processor has no {', '.join(sorted(missing))}")
        if flags not in built:
            rest = [flag for flag in FLAGS if flag not in {"-O3", "-march=native"}]
            path = tmp_path_factory.mktemp("variant") / "variant.so"
            source = Path(__file__).with_name("variant.cpp")
            command = [_compiler(), "-O1", *flags.split(), *rest, f"-I{SOURCES}", str(source)]
            subprocess.run([*command, "-o", str(path)], check=True, capture_output=True)
            built[flags] = path
        return _load(built[flags])

    return load


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(os.fspath(path))
    library.name_of_instructions.restype = library.fault.restype = ctypes.c_char_p
    return library


def _product(
    library: ctypes.CDLL, x: torch.Tensor, weight: torch.Tensor, form: WeightForm, threads: int = 1
) -> torch.Tensor:
    outputs, inputs = weight.shape
    steps = -(-inputs // BLOCK_SIZE)
    blocks = to_nibbles(weight)[0] if form == "int4" else to_blocks(weight)
    size = -(-outputs // library.panel()) * library.panel() * steps * BYTES_OF_BLOCK[form]
    packed, found = torch.empty(size, dtype=torch.uint8), torch.empty(len(x), outputs)
    columns = (None if t is None else ctypes.c_void_p(t.data_ptr()) for t in blocks)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, packed, found)]
    sizes = map(ctypes.c_int64, (len(x), outputs, steps, inputs))
    library.run(*columns, *pointers, *sizes, threads)
    return found


def _weight(form: WeightForm, outputs: int = OUTPUTS, inputs: int = INPUTS) -> torch.Tensor:
    """Products of pairs of its greatest numbers must not saturate in 16 bits."""
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=False)
    linear.weight.data[-1] = 1.0
    linear.weight.data[-1, ::BLOCK_SIZE] = -1.0
    round_weights(linear, form)
    return linear.weight.data


def _rows(count: int, inputs: int = INPUTS) -> torch.Tensor:
    torch.manual_seed(1)
    x = torch.randn(count, inputs)
    x[count // 2] = 1.0
    return x


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("flags", list(NEEDS)[1:])
def test_all_instruction_sets_give_equal_bits(flags: str, form: WeightForm, build: Build) -> None:
    x, weight = _rows(23), _weight(form)
    expected = _product(build(PORTABLE), x, weight, form)
    assert torch.equal(_product(build(flags), x, weight, form), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("flags", [AVX2, VNNI])
def test_tiles_give_equal_bits(flags: str, form: WeightForm, build: Build) -> None:
    tiles, portable = build(f"{flags} {TILES}"), build(PORTABLE)
    assert tiles.name_of_instructions() == b"AVX512-VNNI+AMX-INT8"
    assert tiles.fault() is None
    for outputs, inputs in ((OUTPUTS, INPUTS), (32, 64), (1, 3), (33, 257)):
        weight, whole = _weight(form, outputs, inputs), _rows(70, inputs)
        expected = _product(portable, whole, weight, form)
        for rows in range(1, 71):
            for threads in (1, 2, 3):
                loads = tiles.num_tile_loads()
                found = _product(tiles, whole[-rows:].contiguous(), weight, form, threads)
                assert torch.equal(found, expected[-rows:]), (outputs, inputs, rows, threads)
                assert (tiles.num_tile_loads() > loads) == (rows >= 16)
                assert tiles.num_tile_releases() == tiles.num_tile_loads()


@pytest.mark.parametrize(
    ("change", "fault"), [("refuse_tiles", b"Linux refuses"), ("spoil_tiles", b"wrong products")]
)
def test_tiles_that_are_refused_or_wrong_are_not_used(
    change: str, fault: bytes, build: Build, tmp_path: Path
) -> None:
    tiles = _load(shutil.copy(build(f"{AVX2} {TILES}")._name, tmp_path))
    getattr(tiles, change)()
    assert tiles.name_of_instructions() == b"AVX2"
    assert tiles.fault() == fault
    loads = tiles.num_tile_loads()
    x, weight = _rows(40), _weight("int8")
    expected = _product(build(PORTABLE), x, weight, "int8")
    assert torch.equal(_product(tiles, x, weight, "int8"), expected)
    assert tiles.num_tile_loads() == loads


def test_kernels_compile_for_processors_with_tiles(tmp_path: Path) -> None:
    """Such a processor is not needed; a compiler that does not know it is."""
    flags = [flag for flag in FLAGS if flag not in {"-O3", "-march=native"}]
    compile_ = [_compiler(), "-O0", "-march=sapphirerapids", *flags]
    empty = tmp_path / "empty.cpp"
    empty.touch()
    built = tmp_path / "kernels.so"
    known = subprocess.run(
        [*compile_, str(empty), "-o", str(built)], check=False, capture_output=True
    )
    if known.returncode:
        pytest.skip("this compiler does not know the processor")
    subprocess.run([*compile_, str(SOURCES / "kernels.cpp"), "-o", str(built)], check=True)
    assert b"AVX512-VNNI+AMX-INT8" in built.read_bytes()
