"""Plans a load before any weight is read: source, number formats, sizes, memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, __version__

from edgecosine import models, zoo
from edgecosine.engine.cpu.kernel_library import Kernels, KernelsUnavailable, load_kernels
from edgecosine.engine.cpu.native_llama import CACHE, FAMILIES
from edgecosine.engine.cuda.padded_model import capacity
from edgecosine.engine.length_limits import refuse_chunks
from edgecosine.engine.loading.cut_models import read_cut_config
from edgecosine.engine.loading.device import available_memory, resolve_device
from edgecosine.engine.loading.gguf_file import EMBEDDING
from edgecosine.engine.loading.load_errors import refusing
from edgecosine.engine.loading.memory import BLOCK_BYTES, MemoryPlan, plan_memory
from edgecosine.engine.loading.model_files import is_hub_name
from edgecosine.engine.loading.sources import Source, hub_file, locate
from edgecosine.engine.options import LoadOptions, WeightForm, Weights
from edgecosine.errors import ModelUnavailable, ModelUnsupported

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
KV_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
TREE_ROOM = 64
"""KV positions of a slot reserved for draft nodes."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """A model and its form in memory.

    dtype        number format of computation
    form         storage of linear layers
    cells        number format of the KV cache
    asked_cells  the same where it is requested; None: as the runner prefers
    rounded      number format that the weights of a file are rounded to
    context      most tokens of a sequence
    slot_size    KV positions of a slot, those for draft nodes included
    num_sharing  processes that each take this much of the same memory
    """

    source: Source
    config: Any
    device: str
    dtype: torch.dtype
    form: WeightForm
    cells: torch.dtype
    asked_cells: torch.dtype | None
    rounded: torch.dtype
    context: int
    slot_size: int
    memory: MemoryPlan
    num_sharing: int

    def check(self) -> None:
        """Raises OutOfMemory where less memory is available than planned."""
        self.memory.check(available_memory(self.device) // self.num_sharing, self.device)


def plan_load(options: LoadOptions, room: int = TREE_ROOM) -> LoadPlan:
    """The plan for a model, with `room` KV positions of a slot for draft nodes.

    Raises ModelUnavailable, ModelUnsupported, or ConfigError for a device that does not exist.
    """
    device = resolve_device(options.device)
    source = _source(options)
    config = config_of(source)
    with refusing(f"cannot plan {options.model!r}"):
        return _plan(options, source, config, device, room)


def _plan(options: LoadOptions, source: Source, config: Any, device: str, room: int) -> LoadPlan:
    context = context_of(config, options.context)
    refuse_chunks(config.get_text_config(), context)
    form = _form(source, device, options)
    dtype = _dtype(options.dtype, form, device, config)
    # The weights of a quantised file have no more precision than bfloat16.
    is_rounded = source.gguf and options.dtype == "auto" and form == "bfloat16"
    rounded = config.dtype if is_rounded else dtype
    slot_size = context + room
    sizes = _sizes(source, options)
    asked_cells = KV_DTYPES.get(options.kv_dtype)
    cells = asked_cells or _cache_dtype(config, device, dtype)
    memory = plan_memory(
        config, dtype=dtype, quantize=options.quantize, slots=options.slots,
        slot_size=slot_size if device == "cpu" else capacity(slot_size), ballast=options.ballast,
        cells=cells, num_ranks=options.tensor_parallel,
        sizes=sizes, origin=_origin(source, sizes, rounded, form), form=form,
    )  # fmt: skip
    return LoadPlan(
        source, config, device, dtype, form, cells, asked_cells, rounded, context, slot_size,
        memory, num_sharing=options.tensor_parallel if device == "cpu" else 1,
    )  # fmt: skip


def read_config(options: LoadOptions) -> Any:
    """The configuration of a model.

    Raises ModelUnavailable or ModelUnsupported.
    """
    return config_of(_source(options))


def reading(name: str, what: str, read: Callable[[], Any]) -> Any:
    """The result of `read`, which reads the part `what` of the model `name`.

    Raises ModelUnavailable where it fails.
    """
    remedy = (
        f"; its files are missing, damaged, or of another release than transformers {__version__}"
        if Path(name).expanduser().exists()
        else f" (known by name: {', '.join((*zoo.names(), *models.names()))})"
    )
    with refusing(f"cannot load {name!r}, {what}", remedy, ModelUnavailable):
        return read()


def kernels_if_any() -> Kernels | None:
    """The compiled kernels; None where they are unavailable."""
    try:
        return load_kernels()
    except KernelsUnavailable:
        return None


def _source(options: LoadOptions) -> Source:
    source = locate(options.model, options.gguf)
    if source.gguf is not None and options.quantize != "none":
        raise ModelUnsupported(
            f"{options.model} is quantised already ({source.gguf.quantization}): omit --quantize"
        )
    if source.gguf is not None and options.tensor_parallel > 1:
        raise ModelUnsupported(
            f"{options.model} is a GGUF file, which cannot be split over processes: omit "
            "--tensor-parallel, or use a directory of safetensors"
        )
    return source


def config_of(source: Source) -> Any:
    """The configuration of a source.

    Raises ModelUnavailable or ModelUnsupported.
    """
    if source.gguf is not None:
        return read_cut_config(source)
    is_of_hub = is_hub_name(source.where) and not Path(source.where).is_dir()
    if is_of_hub and hub_file(source.where, "config.json") is None:
        raise ModelUnavailable(
            f"{source.where} has no config.json in the model hub; of a model with GGUF files name "
            "one: --gguf FILE"
        )
    config = reading(
        source.where,
        "config.json",
        lambda: AutoConfig.from_pretrained(source.where, trust_remote_code=False),
    )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelUnsupported(
            f"model family {config.model_type!r} cannot be served: not a causal language model"
        )
    return config


def _form(source: Source, device: str, options: LoadOptions) -> WeightForm:
    """Raises ModelUnsupported where blocks are requested and not available."""
    if options.weights == "bfloat16":
        return "bfloat16"
    fault = _why_no_blocks(device, options)
    if options.weights != "auto":
        if fault:
            raise ModelUnsupported(f"--weights {options.weights} is not available: {fault}")
        return options.weights
    kernels = kernels_if_any()
    if fault or options.dtype != "auto" or kernels is None or not kernels.has_bytes:
        return "bfloat16"
    if source.gguf is None or not source.gguf.is_quantized:
        return "bfloat16"
    return "int4" if source.gguf.main_format.startswith("Q4_") else "int8"


def quickest_form(options: LoadOptions) -> Weights:
    """The setting `weights` for a drafter.

    A GGUF file is held in 8 bits where the processor multiplies bytes, unless the file has fewer:
    that loses no acceptance, and rounding to 4 bits does (docs/engine.md).
    """
    kernels = kernels_if_any()
    is_open = options.weights == "auto" and options.dtype == "auto"
    if not is_open or kernels is None or not kernels.has_bytes:
        return options.weights
    gguf = _source(options).gguf
    if gguf is None or gguf.is_quantized or _why_no_blocks(resolve_device(options.device), options):
        return "auto"
    return "int8"


def _why_no_blocks(device: str, options: LoadOptions) -> str | None:
    if device != "cpu":
        return f"it needs a CPU, and this model is on {device}"
    if options.quantize != "none" or options.tensor_parallel > 1:
        return "omit --quantize and --tensor-parallel"
    if options.dtype not in {"auto", "float32"}:
        return f"omit --dtype {options.dtype}"
    try:
        load_kernels()
    except KernelsUnavailable as error:
        return str(error)
    return None


def _dtype(asked: str, form: WeightForm, device: str, config: Any) -> torch.dtype:
    if asked != "auto":
        return DTYPES[asked]
    return _default_dtype(device, config) if form == "bfloat16" else torch.float32


def _default_dtype(device: str, config: Any) -> torch.dtype:
    """bfloat16 if the processor has units for it and the checkpoint has no more precision.

    Otherwise the kernels compute in float32 on a CPU, with bfloat16 weights unchanged.
    """
    if device != "cpu":
        return torch.bfloat16
    kernels = kernels_if_any()
    has_units = kernels is not None and kernels.has_pairs
    is_stored_narrow = config.get_text_config().dtype == torch.bfloat16
    return torch.bfloat16 if has_units and is_stored_narrow else torch.float32


def _cache_dtype(config: Any, device: str, dtype: torch.dtype) -> torch.dtype:
    is_fused = device == "cpu" and config.model_type in FAMILIES
    return CACHE if is_fused and kernels_if_any() is not None else dtype


def context_of(config: Any, wanted: int) -> int:
    """Maximum tokens of a sequence if `wanted` are requested; 0 requests the model's default."""
    text = config.get_text_config()
    most = int(getattr(text, "max_position_embeddings", 0) or 2048)
    return min(wanted, most) if wanted else min(most, 4096)


def _sizes(source: Source, options: LoadOptions) -> list[int]:
    """Elements of each weight in memory, from the file's tensor table; empty without a table.

    A tied output layer is stored in addition to the embedding; a cut model has the embedding of its
    base.
    """
    if source.gguf is None or options.ballast > 1:
        return []
    if source.gguf.is_adapter and source.base is not None:
        return _sizes(source.base, options)
    sizes = [tensor.num_elements for tensor in source.gguf.weights]
    is_apart = source.base is not None or source.gguf.is_tied
    whole = source.whole.gguf.tensors if is_apart and source.whole.gguf else ()
    return sizes + [tensor.num_elements for tensor in whole if tensor.name == EMBEDDING]


def _origin(source: Source, sizes: list[int], dtype: torch.dtype, form: WeightForm) -> str:
    if source.gguf is None:
        return ""
    per_weight = BLOCK_BYTES.get(form, dtype.itemsize)
    packed = sum(sizes or _sizes(source, LoadOptions(""))) * per_weight
    name = form if form in BLOCK_BYTES else str(dtype).removeprefix("torch.")
    return f"{source.gguf.num_bytes / 1e9:.1f} GB file, {packed / 1e9:.2f} GB packed in {name}"
