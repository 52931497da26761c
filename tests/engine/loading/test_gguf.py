"""GGUF files are served as they are, or refused with the reason."""

from __future__ import annotations

import logging
import random
from contextlib import suppress
from ctypes import CDLL
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter, RopeScalingType
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

from edgecosine.engine.base import DraftWork
from edgecosine.engine.cpu.kernel_library import Kernels
from edgecosine.engine.loading.gguf_file import read_gguf
from edgecosine.engine.loading.load import load_drafter, load_target
from edgecosine.engine.loading.load_plan import kernels_if_any, plan_load
from edgecosine.engine.loading.model_files import fault_of, files_digest, find_model
from edgecosine.engine.options import LoadOptions
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.errors import ModelUnavailable, ModelUnsupported, OutOfMemory
from edgecosine.protocol.api.request import ChatMessage
from edgecosine.protocol.wire.messages import SharedNoise
from tests.engine.decoding import decode, nothing
from tests.engine.loading.gguf_files import (
    CONTEXT,
    END,
    FEED_FORWARD,
    HEADS,
    TOKENS,
    TURN_END,
    WIDTH,
    write_gguf,
)

PROMPT = [20 + 7 * i % 200 for i in range(20)]
KINDS = (Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("models") / "plain.gguf", kind=Kind.Q4_1)


def options(path: Path | str, **changes: Any) -> LoadOptions:
    return LoadOptions(
        **({"model": str(path), "threads": 1, "slots": 1, "dtype": "float32"} | changes)
    )


def generated(path: Path, length: int) -> list[int]:
    """The continuation of the prompt by transformers, from the dequantised weights."""
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    config = AutoConfig.from_pretrained(**where)
    config.head_dim, config.moe_intermediate_size = WIDTH // HEADS, FEED_FORWARD
    model = AutoModelForCausalLM.from_pretrained(
        **where, config=config, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    answer = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=length, do_sample=False, eos_token_id=None
    )
    return answer[0, len(PROMPT) :].tolist()


def served(options: LoadOptions, length: int) -> list[int]:
    engine, _ = load_target(options)
    assert isinstance(engine, TransformerTarget)
    [answer], _ = decode(engine, [PROMPT], length, [nothing])
    return answer


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_text_equals_that_of_the_dequantised_weights(kind: Kind, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", kind=kind)
    answer = served(options(path), 12)
    assert answer == generated(path, 12)
    assert len(set(answer)) > 3


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen3moe"])
def test_text_of_other_families_equals_that_of_the_dequantised_weights(
    family: str, tmp_path: Path
) -> None:
    def add_head_size(writer: GGUFWriter) -> None:
        writer.add_key_length(WIDTH // HEADS)

    path = write_gguf(tmp_path / "model.gguf", family=family, kind=Kind.Q8_0, change=add_head_size)
    assert served(options(path), 12) == generated(path, 12)


def test_experts_of_a_quantised_file_stay_in_blocks(tmp_path: Path) -> None:
    kernels = kernels_if_any()
    if kernels is None or not kernels.has_bytes:
        pytest.skip("this processor has no instructions that multiply bytes")
    path = write_gguf(tmp_path / "model.gguf", family="qwen3moe", kind=Kind.Q4_K)
    _, loaded = load_target(options(path, dtype="auto"))
    assert (loaded.form, loaded.exactness) == ("int4", "bitwise")
    assert loaded.weights < loaded.num_parameters


def test_text_of_a_split_set_equals_that_of_one_file(plain: Path, tmp_path: Path) -> None:
    first = write_gguf(tmp_path / "set.gguf", kind=Kind.Q4_1, tensors_per_part=8)
    assert first.name == "set-00001-of-00003.gguf"
    assert served(options(first), 8) == served(options(plain), 8)
    assert served(options(tmp_path, gguf=first.name), 8) == served(options(plain), 8)


def test_tokenizer_template_and_end_tokens_come_from_the_file(plain: Path) -> None:
    _, loaded = load_target(options(plain))
    assert loaded.codec is not None
    assert loaded.codec.num_tokens == len(TOKENS)
    assert loaded.codec.eos_tokens == {END, TURN_END}
    assert loaded.codec.decode(loaded.codec.encode("in the end – 漢")) == "in the end – 漢"
    asked = loaded.codec.encode_chat([ChatMessage("user", "hi")])
    assert asked[0] == TOKENS.index("<|im_start|>")
    assert asked.count(TURN_END) == 1
    assert (loaded.name, loaded.quantization) == ("plain.gguf", "Q4_1")


def test_tokenizer_unsupported_by_old_transformers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.integrations.gguf.GGUF_TOKENIZER_ARCHS", {}, raising=False)

    def split_otherwise(writer: GGUFWriter) -> None:
        writer.kv_data[0]["tokenizer.ggml.pre"].value = "llama-bpe"

    path = write_gguf(tmp_path / "model.gguf", change=split_otherwise)
    with pytest.raises(ModelUnsupported, match=r"\(llama-bpe\) needs transformers 5\.18"):
        load_target(options(path))


def test_drafter_drafts_from_a_file(plain: Path) -> None:
    drafter, loaded = load_drafter(options(plain, slots=2))
    [proposal] = drafter.draft([DraftWork("a", PROMPT, 5, 1, SharedNoise())])
    assert len(proposal.tokens) >= 5
    assert loaded.num_parameters == read_gguf(plain).num_parameters


def test_memory_is_planned_from_the_tensor_table(
    plain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, plan = read_gguf(plain), plan_load(options(plain, dtype="auto", weights="bfloat16"))
    assert plan.rounded == torch.bfloat16
    # The tied output layer is held beside the embedding.
    num_held = model.num_parameters + model.tensors[0].num_elements
    assert model.tensors[0].name == "token_embd.weight"
    assert plan.memory.weights == num_held * plan.dtype.itemsize
    assert plan.memory.origin == "0.0 GB file, 0.00 GB packed in bfloat16"
    assert plan.context == CONTEXT
    with caplog.at_level(logging.INFO, logger="edgecosine.engine.loading.load_model"):
        load_target(options(plain))
    assert "0.0 GB file, 0.00 GB packed in float32" in caplog.text
    with pytest.raises(OutOfMemory, match=r"GB packed in float32: needs .* --slots"):
        load_target(options(plain, slots=1 << 24))


@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.BF16, Kind.F16, Kind.F32], ids=lambda k: k.name)
def test_weights_are_rounded_unless_the_file_has_more_digits(kind: Kind, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", kind=kind)
    expected = torch.float32 if kind in {Kind.F16, Kind.F32} else torch.bfloat16
    plan = plan_load(options(path, dtype="auto", device="cpu", weights="bfloat16"))
    assert plan.rounded == expected


@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.Q8_0, Kind.BF16, Kind.F16], ids=lambda k: k.name)
@pytest.mark.parametrize("instructions", ["AVX2", "portable"])
def test_quantised_files_keep_their_bits_where_the_processor_multiplies_bytes(
    kind: Kind, instructions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = Kernels(library=CDLL(None), panel=32, has_pairs=True, instructions=instructions)
    monkeypatch.setattr("edgecosine.engine.loading.load_plan.load_kernels", lambda: kernels)
    path = write_gguf(tmp_path / "model.gguf", kind=kind)
    plan = plan_load(options(path, dtype="auto", device="cpu"))
    form = {Kind.Q4_1: "int4", Kind.Q8_0: "int8"}.get(kind) if kernels.has_bytes else None
    assert plan.form == (form or "bfloat16")
    if form:
        assert (plan.dtype, plan.rounded) == (torch.float32, torch.float32)
        assert plan.memory.origin == f"0.0 GB file, 0.00 GB packed in {form}"
    asked = plan_load(options(path, dtype="auto", device="cpu", weights="int8"))
    assert asked.form == "int8"
    assert plan_load(options(path, dtype="float32", device="cpu")).form == "bfloat16"


def test_file_that_is_cut_off_is_refused_with_both_sizes(plain: Path, tmp_path: Path) -> None:
    content = plain.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[:-100_000])
    with pytest.raises(ModelUnavailable, match=r"cut\.gguf is cut off: [\d,]+ bytes of [\d,]+;"):
        load_target(options(path))
    for length in range(4, 8_000, 199):
        path.write_bytes(content[:length])
        assert str(fault_of(path)).startswith("is cut off")


def test_header_with_excessive_counts_is_refused(plain: Path, tmp_path: Path) -> None:
    content, path = bytearray(plain.read_bytes()), tmp_path / "huge.gguf"
    for place in (8, 16, 24):
        damaged = content.copy()
        damaged[place : place + 8] = b"\xff" * 8
        path.write_bytes(damaged)
        assert "header does not parse" in str(fault_of(path))
    path.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + bytes(content[8:]))
    assert "is GGUF version 1" in str(fault_of(path))
    path.write_bytes(b"safetensors")
    assert fault_of(path) == "is not a GGUF file"


def test_damaged_headers_are_refused_or_read(plain: Path, tmp_path: Path) -> None:
    content, path = bytearray(plain.read_bytes()), tmp_path / "damaged.gguf"
    chance, header = random.Random(1), 7000
    for _ in range(300):
        damaged = content.copy()
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(header)] = chance.choice((0, 1, 9, 255, chance.randrange(256)))
        path.write_bytes(damaged)
        with suppress(ModelUnavailable):
            model = read_gguf(path)
            assert model.num_tokens > 0
            assert model.quantization
            assert model.end_tokens is not None


def test_missing_part_of_a_set_is_named(tmp_path: Path) -> None:
    first = write_gguf(tmp_path / "set.gguf", tensors_per_part=8)
    (tmp_path / "set-00002-of-00003.gguf").unlink()
    with pytest.raises(ModelUnavailable, match=r"set-00002-of-00003\.gguf is missing"):
        load_target(options(first))


def test_renamed_first_part_is_refused(tmp_path: Path) -> None:
    first = write_gguf(tmp_path / "set.gguf", tensors_per_part=8)
    renamed = first.rename(tmp_path / "model.gguf")
    with pytest.raises(ModelUnavailable, match="one of 3 parts"):
        load_target(options(renamed))


def test_file_without_tokenizer_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", has_tokenizer=False)
    with pytest.raises(ModelUnavailable, match="has no tokenizer"):
        load_target(options(path))


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("rwkv6", "recurrent state"),
        ("mamba", "recurrent state"),
        ("plm", "not supported"),
        ("t5", "not a causal language model"),
    ],
)
def test_unsupported_architecture_is_refused_by_name(
    family: str, reason: str, tmp_path: Path
) -> None:
    def add_state(writer: GGUFWriter) -> None:
        if family == "rwkv6":
            writer.add_wkv_head_size(64)
        if family == "mamba":
            writer.add_ssm_state_size(16)

    path = write_gguf(tmp_path / "model.gguf", family=family, change=add_state)
    with pytest.raises(ModelUnsupported, match=f"GGUF architecture '{family}' .*{reason}"):
        load_target(options(path))


def test_unknown_weights_are_refused(tmp_path: Path) -> None:
    # llama has no biases here, so transformers would drop them silently.
    path = write_gguf(tmp_path / "qwen.gguf", family="qwen2")
    path.write_bytes(path.read_bytes().replace(b"qwen2", b"llama"))
    with pytest.raises(ModelUnsupported, match="its output would be wrong"):
        load_target(options(path))


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up.", b"blk.9.ffn_up."))
    with pytest.raises(ModelUnsupported, match=r"not in the file are .*up_proj"):
        load_target(options(path))


def test_ignored_rotary_scaling_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def scale(writer: GGUFWriter) -> None:
        writer.add_rope_scaling_type(RopeScalingType.YARN)

    load_target(options(write_gguf(tmp_path / "model.gguf", change=scale)))
    assert "rotary scaling of a GGUF file ignored" in caplog.text


def test_options_incompatible_with_a_file_are_refused(plain: Path) -> None:
    with pytest.raises(ModelUnsupported, match="quantised already"):
        load_drafter(options(plain, quantize="nf4"))
    with pytest.raises(ModelUnsupported, match="tensor-parallel"):
        load_target(options(plain, tensor_parallel=2))
    with pytest.raises(ModelUnavailable, match="--gguf"):
        load_target(options(plain, gguf="other.gguf"))
    with pytest.raises(ModelUnavailable, match=r"name it: .*plain\.gguf"):
        load_target(options(plain.parent))
    with pytest.raises(ModelUnavailable, match=r"absent\.gguf does not exist"):
        load_target(options(plain.parent, gguf="absent.gguf"))


def test_identity_of_a_file_does_not_depend_on_its_name(plain: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(plain.read_bytes())
    other = write_gguf(tmp_path / "other.gguf", kind=Kind.Q8_0)
    assert files_digest(copy) == files_digest(plain) != files_digest(other)
    assert find_model(str(copy), tmp_path) == copy
    assert find_model(str(tmp_path), tmp_path, "copy.gguf") == copy
    assert fault_of(copy) is None
