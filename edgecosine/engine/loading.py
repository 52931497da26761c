"""From a model's name to an engine: find it, plan its memory, load it, test it.

A name is a model of the zoo, a local directory or a hub id, in this order. Nothing that a model
directory holds is executed: weights are safetensors, and remote code is never trusted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.utils import logging as transformers_logging

from edgecosine import zoo
from edgecosine.engine import drafter
from edgecosine.engine.ballast import add_ballast
from edgecosine.engine.base import DraftEngine, TargetEngine
from edgecosine.engine.device import available_memory, resolve_device
from edgecosine.engine.exactness import confirm, decide, require
from edgecosine.engine.fused import CACHE, FAMILIES, FusedModel, can_fuse
from edgecosine.engine.graphs import capture_for, use_own_stream
from edgecosine.engine.memory import freeing_at_once, plan_memory
from edgecosine.engine.model import PassModel, SlotModel
from edgecosine.engine.model_files import NGRAM, fault_of, files_digest, find_model
from edgecosine.engine.native import Kernels, KernelsUnavailable, load_kernels
from edgecosine.engine.ngram import load_ngram
from edgecosine.engine.options import Loaded, LoadOptions, Quantize
from edgecosine.engine.parallel_layers import can_pack
from edgecosine.engine.progress import showing_progress
from edgecosine.engine.selftest import Reference, check_as_served, check_family, take_reference
from edgecosine.engine.static import RUNS_TO_REPLAY, StaticModel, capacity
from edgecosine.engine.target import TransformerTarget
from edgecosine.engine.text import TextCodec
from edgecosine.errors import ModelUnavailable, ModelUnsupported

logger = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
TREE_ROOM = 64
"""Cells of a slot kept free for draft nodes."""


def locate(name: str) -> str:
    """Directory or hub id that `name` stands for.

    Raises ModelUnavailable for a directory that holds no whole model.
    """
    if name in zoo.names():
        return str(zoo.DIRECTORY / name)
    path = Path(name).expanduser()
    if not path.is_dir():
        return name
    if fault := fault_of(path):
        raise ModelUnavailable(f"{path} holds no whole model: {fault}")
    return str(path)


def load_target(options: LoadOptions) -> tuple[TargetEngine, Loaded]:
    """Load the model that decides.

    Raises ModelUnavailable, ModelUnsupported or OutOfMemory.
    """
    if options.model == NGRAM:
        raise ModelUnsupported("ngram only drafts; a target needs a model")
    model, loaded, cells = load_model(options) if options.tensor_parallel == 1 else _split(options)
    engine = TransformerTarget(
        model,
        slots=options.slots,
        max_context=loaded.max_context,
        eos_tokens=loaded.codec.eos_tokens if loaded.codec else (),
    )
    logger.info(
        "target loaded model=%s cells=%d tensor_parallel=%d exactness=%s (%s)",
        loaded.name,
        cells,
        options.tensor_parallel,
        loaded.exactness,
        loaded.exactness_reason,
    )
    return engine, loaded


def load_drafter(options: LoadOptions) -> tuple[DraftEngine, Loaded]:
    """Load a model that guesses, or the model-free drafter `ngram`.

    Raises ModelUnavailable, ModelUnsupported or OutOfMemory.
    """
    if options.tensor_parallel > 1:
        raise ModelUnsupported("only a target can be tensor-parallel")
    if options.model == NGRAM:
        return load_ngram()
    # A guess cannot change an answer, so no drafter is held to a policy.
    options = replace(options, exactness="rounding")
    model, loaded, _ = load_model(options, room=drafter.TREE_ROOM)
    kernels = _kernels_if_any()
    engine = drafter.TransformerDrafter(
        model, slots=options.slots, max_context=loaded.max_context, kernels=kernels
    )
    return engine, loaded


def read_config(name: str) -> Any:
    """The configuration of a model.

    Raises ModelUnavailable.
    """
    where = locate(name)
    return _read(lambda: AutoConfig.from_pretrained(where), name)


def load_model(
    options: LoadOptions, meet: Callable[[], None] = lambda: None, room: int = TREE_ROOM
) -> tuple[PassModel, Loaded, int]:
    """Load a model, or this rank's share of it; also gives the cells of a slot.

    `meet` waits for the other ranks: memory is looked at before any of them takes some, and no rank
    waits in its first pass for the weights of another. `room` is the cells of a slot that are kept
    free for draft nodes. Raises ModelUnavailable, ModelUnsupported or OutOfMemory.
    """
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    device = resolve_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    where = locate(options.model)
    config = read_config(options.model)
    context = _context(config, options.context)
    dtype = DTYPES[options.dtype] if options.dtype != "auto" else _default_dtype(device, config)
    cells = context + room
    decision = decide(device, dtype)
    require(decision, options.exactness)
    plan = plan_memory(
        config, dtype=dtype, quantize=options.quantize, slots=options.slots,
        cells=cells if device == "cpu" else capacity(cells), ballast=options.ballast,
        cache_dtype=_cache_dtype(config, device, dtype), num_ranks=options.tensor_parallel,
    )  # fmt: skip
    sharing = options.tensor_parallel if device == "cpu" else 1
    plan.check(available_memory(device) // sharing, device)

    def load() -> Any:
        with showing_progress(options.model):
            model = _read(lambda: _weights(where, dtype, device, options), options.model)
        if options.ballast > 1:
            add_ballast(model, options.ballast)
        return model

    tokenizer = _read(lambda: AutoTokenizer.from_pretrained(where), options.model)
    with freeing_at_once():
        meet()
        model = load()
        meet()
        num_parameters = sum(p.numel() for p in model.parameters())
        reference = _reference(model, options.quantize, context)
        kernels = None if model.tp_size and not can_pack(model) else decision.kernels
        runner = _runner(model, load, reference, options.slots, cells, kernels)
    decision = confirm(decision, options.exactness, runner, model)
    name = _display_name(options)
    codec = TextCodec(tokenizer, _eos_tokens(model))
    weights, cache = runner.held
    loaded = Loaded(
        name, options.quantize, codec, context, decision.policy, num_parameters, decision.reason,
        weights=weights, cache=cache, planned=plan.total, dtype=str(dtype).removeprefix("torch."),
        digest=_digest(options.model),
    )  # fmt: skip
    return runner, loaded, cells


def _digest(name: str) -> str:
    directory = find_model(name, zoo.DIRECTORY)
    return "" if directory is None else files_digest(directory)


def _split(options: LoadOptions) -> tuple[PassModel, Loaded, int]:
    from edgecosine.engine.parallel import load_over_ranks  # each rank loads by this file

    return load_over_ranks(options)


def _reference(model: Any, quantize: Quantize, context: int) -> Reference:
    try:
        return take_reference(model, context)
    except RuntimeError as error:
        if quantize == "none":
            raise
        raise ModelUnsupported(
            f"{quantize} does not run on this device with this model ({error}); "
            "leave --quantize out, or take another"
        ) from error


def _runner(
    model: Any,
    reload: Callable[[], Any],
    reference: Reference,
    slots: int,
    cells: int,
    kernels: Kernels | None,
) -> PassModel:
    """The fastest way to run the model that gives what the model itself gives.

    A way that is tried takes the weights, so the next one loads them again.
    """
    family, threads = str(model.config.model_type), torch.get_num_threads()
    if kernels is not None and can_fuse(model):
        fused = FusedModel(
            model, slots=slots, cells=cells, threads=threads, kernels=kernels, takes_weights=True
        )
        try:
            check_family(fused, reference, family)
        except ModelUnsupported as error:
            logger.warning("running layer by layer: %s", error)
            del fused
            model = reload()
        else:
            return fused
    # Recording what ranks send each other is nccl's business, and untested.
    if model.device.type == "cuda" and not model.tp_size:
        use_own_stream(model.device)
        if (static := fixed_shapes(model, reference, slots, cells)) is not None:
            return static
    layered = SlotModel(model, slots=slots, cells=cells, threads=threads, kernels=kernels)
    check_family(layered, reference, family)
    return layered


def fixed_shapes(model: Any, reference: Reference, slots: int, cells: int) -> PassModel | None:
    """The model in fixed shapes, or None when it does not give what the model itself gives."""
    family = str(model.config.model_type)
    try:
        static = StaticModel(model, slots=slots, cells=cells, capture=capture_for(model.device))
        check_family(static, reference, family)
        for _ in range(RUNS_TO_REPLAY - 1):
            check_as_served(static, reference, family)
    except (ModelUnsupported, torch.OutOfMemoryError) as error:
        logger.warning("no passes of fixed shapes: %s", error)
        return None
    return static


def _read(load: Callable[[], Any], name: str) -> Any:
    try:
        return load()
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()
        raise ModelUnavailable(
            f"cannot load {name!r}: {reason[0] if reason else type(error).__name__} "
            f"(zoo models: {', '.join(zoo.names()) or 'none'})"
        ) from error


def _weights(where: str, dtype: torch.dtype, device: str, options: LoadOptions) -> Any:
    quantize = options.quantize
    settings: dict[str, Any] = {
        "dtype": dtype,
        "use_safetensors": True,
        "trust_remote_code": False,
        "attn_implementation": "eager",
    }
    if options.tensor_parallel > 1:
        from transformers.distributed.configuration_utils import DistributedConfig

        shards = DistributedConfig(tp_size=options.tensor_parallel)
        return AutoModelForCausalLM.from_pretrained(where, **settings, distributed_config=shards)
    if quantize == "none":
        model: Any = AutoModelForCausalLM.from_pretrained(where, **settings)
        return model.to(device)
    for name in ("bitsandbytes", "transformers.integrations.bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    settings |= {"device_map": device, "quantization_config": _quantization(quantize, dtype)}
    return AutoModelForCausalLM.from_pretrained(where, **settings)


def _quantization(quantize: Quantize, dtype: torch.dtype) -> Any:
    settings: dict[str, Any] = (
        {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": dtype,
        }
        if quantize == "nf4"
        # A threshold above 0 picks outlier columns by the batch: rows would see each other.
        else {"load_in_8bit": True, "llm_int8_threshold": 0.0}
    )
    return BitsAndBytesConfig(**settings)  # type: ignore[no-untyped-call]


def _kernels_if_any() -> Kernels | None:
    try:
        return load_kernels()
    except KernelsUnavailable:
        return None


def _default_dtype(device: str, config: Any) -> torch.dtype:
    """bfloat16 where there are units for it, as far as the checkpoint has no more to give.

    Elsewhere on a CPU the kernels compute in float32 and keep bfloat16 weights as they are.
    """
    if device != "cpu":
        return torch.bfloat16
    kernels = _kernels_if_any()
    has_units = kernels is not None and kernels.has_pairs
    is_stored_narrow = config.get_text_config().dtype == torch.bfloat16
    return torch.bfloat16 if has_units and is_stored_narrow else torch.float32


def _cache_dtype(config: Any, device: str, dtype: torch.dtype) -> torch.dtype:
    is_fused = device == "cpu" and config.model_type in FAMILIES
    return CACHE if is_fused and _kernels_if_any() is not None else dtype


def _context(config: Any, wanted: int) -> int:
    text = config.get_text_config()
    most = int(getattr(text, "max_position_embeddings", 0) or 2048)
    return min(wanted, most) if wanted else min(most, 4096)


def _eos_tokens(model: Any) -> list[int]:
    eos = model.generation_config.eos_token_id
    if eos is None:
        eos = model.config.get_text_config().eos_token_id
    if eos is None:
        return []
    return [eos] if isinstance(eos, int) else list(eos)


def _display_name(options: LoadOptions) -> str:
    name = options.model if options.model in zoo.names() else Path(options.model).name
    return f"{name}+ballast{options.ballast}" if options.ballast > 1 else name
