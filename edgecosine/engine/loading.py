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
from edgecosine.engine.ballast import add_ballast
from edgecosine.engine.base import DraftEngine, TargetEngine
from edgecosine.engine.device import available_memory, resolve_device
from edgecosine.engine.drafter import TransformerDrafter
from edgecosine.engine.exactness import confirm, decide, require
from edgecosine.engine.fused import FusedModel, can_fuse
from edgecosine.engine.memory import plan_memory
from edgecosine.engine.model import PassModel, SlotModel
from edgecosine.engine.model_files import NGRAM, fault_of
from edgecosine.engine.native import Kernels
from edgecosine.engine.ngram import load_ngram
from edgecosine.engine.options import Loaded, LoadOptions, Quantize
from edgecosine.engine.selftest import check_family, reference_logits
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
    model, loaded, cells = _load(options)
    engine = TransformerTarget(model, slots=options.slots, max_context=loaded.max_context)
    logger.info(
        "target loaded model=%s cells=%d exactness=%s (%s)",
        loaded.name,
        cells,
        loaded.exactness,
        loaded.exactness_reason,
    )
    return engine, loaded


def load_drafter(options: LoadOptions) -> tuple[DraftEngine, Loaded]:
    """Load a model that guesses, or the model-free drafter `ngram`.

    Raises ModelUnavailable, ModelUnsupported or OutOfMemory.
    """
    if options.model == NGRAM:
        return load_ngram()
    # A guess cannot change an answer, so no drafter is held to a policy.
    model, loaded, _ = _load(replace(options, exactness="rounding"))
    engine = TransformerDrafter(model, slots=options.slots, max_context=loaded.max_context)
    return engine, loaded


def _load(options: LoadOptions) -> tuple[PassModel, Loaded, int]:
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    device = resolve_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    where = locate(options.model)
    config = _read(lambda: AutoConfig.from_pretrained(where), options.model)
    context = _context(config, options.context)
    dtype = DTYPES[options.dtype] if options.dtype != "auto" else _default_dtype(device)
    cells = context + TREE_ROOM
    decision = decide(device, dtype)
    require(decision, options.exactness)
    plan = plan_memory(
        config, dtype=dtype, quantize=options.quantize, slots=options.slots, cells=cells,
        ballast=options.ballast,
    )  # fmt: skip
    plan.check(available_memory(device), device)
    model = _read(lambda: _weights(where, dtype, device, options.quantize), options.model)
    num_parameters = sum(p.numel() for p in model.parameters())
    if options.ballast > 1:
        num_parameters = add_ballast(model, options.ballast)
    tokenizer = _read(lambda: AutoTokenizer.from_pretrained(where), options.model)
    runner = _runner(model, options.slots, cells, decision.kernels)
    decision = confirm(decision, options.exactness, runner, model)
    name = _display_name(options)
    codec = TextCodec(tokenizer, _eos_tokens(model))
    loaded = Loaded(
        name, options.quantize, codec, context, decision.policy, num_parameters, decision.reason
    )
    return runner, loaded, cells


def _runner(model: Any, slots: int, cells: int, kernels: Kernels | None) -> PassModel:
    """The fastest way to run the model that gives what the model itself gives."""
    reference = reference_logits(model)
    family, threads = str(model.config.model_type), torch.get_num_threads()
    if kernels is not None and can_fuse(model):
        fused = FusedModel(model, slots=slots, cells=cells, threads=threads, kernels=kernels)
        try:
            check_family(fused, reference, family)
        except ModelUnsupported as error:
            logger.warning("running layer by layer: %s", error)
        else:
            return fused
    layered = SlotModel(model, slots=slots, cells=cells, threads=threads, kernels=kernels)
    check_family(layered, reference, family)
    return layered


def _read(load: Callable[[], Any], name: str) -> Any:
    try:
        return load()
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()
        raise ModelUnavailable(
            f"cannot load {name!r}: {reason[0] if reason else type(error).__name__} "
            f"(zoo models: {', '.join(zoo.names()) or 'none'})"
        ) from error


def _weights(where: str, dtype: torch.dtype, device: str, quantize: Quantize) -> Any:
    settings: dict[str, Any] = {
        "dtype": dtype,
        "use_safetensors": True,
        "trust_remote_code": False,
        "attn_implementation": "eager",
    }
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


def _default_dtype(device: str) -> torch.dtype:
    # On a CPU the kernels compute in float32 and keep bfloat16 weights as they are in memory.
    return torch.float32 if device == "cpu" else torch.bfloat16


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
