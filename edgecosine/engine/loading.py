"""From a model's name to an engine: find it, plan its memory, load it, test it.

Nothing that a model directory holds is executed: weights are safetensors or GGUF, and remote code
is never trusted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from edgecosine import models, zoo
from edgecosine.engine import drafter
from edgecosine.engine.ballast import add_ballast
from edgecosine.engine.base import DraftEngine, TargetEngine
from edgecosine.engine.cut_models import load_cut_model
from edgecosine.engine.exactness import confirm, decide, require
from edgecosine.engine.fused import FusedModel, can_fuse
from edgecosine.engine.gguf_weights import load_gguf_weights, read_gguf_tokenizer
from edgecosine.engine.graphs import capture_for, use_own_stream
from edgecosine.engine.memory import freeing_at_once
from edgecosine.engine.model import PassModel, SlotModel
from edgecosine.engine.model_files import NGRAM, files_digest, find_model
from edgecosine.engine.native import Kernels
from edgecosine.engine.ngram import load_ngram
from edgecosine.engine.options import Loaded, LoadOptions, Quantize
from edgecosine.engine.packing import round_weights
from edgecosine.engine.parallel_layers import can_pack
from edgecosine.engine.planning import TREE_ROOM, LoadPlan, kernels_if_any, plan_load, reading
from edgecosine.engine.progress import download_bar, showing_progress
from edgecosine.engine.selftest import Reference, check_as_served, check_family, take_reference
from edgecosine.engine.sources import Source
from edgecosine.engine.static import RUNS_TO_REPLAY, StaticModel
from edgecosine.engine.target import TransformerTarget
from edgecosine.engine.text import TextCodec
from edgecosine.errors import ModelUnsupported

logger = logging.getLogger(__name__)


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
    kernels = kernels_if_any()
    engine = drafter.TransformerDrafter(
        model, slots=options.slots, max_context=loaded.max_context, kernels=kernels
    )
    return engine, loaded


def load_model(
    options: LoadOptions, meet: Callable[[], None] = lambda: None, room: int = TREE_ROOM
) -> tuple[PassModel, Loaded, int]:
    """Load a model, or this rank's share of it; also gives the cells of a slot.

    `meet` waits for the other ranks: memory is looked at before any of them takes some, and no rank
    waits in its first pass for the weights of another. `room` is the cells of a slot that are kept
    free for draft nodes. Raises ModelUnavailable, ModelUnsupported or OutOfMemory.
    """
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if options.threads:
        torch.set_num_threads(options.threads)
    plan = plan_load(options, room)
    decision = decide(plan.device, plan.dtype)
    require(decision, options.exactness)
    if plan.memory.origin:
        logger.info("%s: %s", options.model, plan.memory.origin)
    plan.check()

    def load() -> Any:
        with showing_progress(options.model):
            model = reading(options.model, lambda: _weights(plan, options))
        if options.ballast > 1:
            add_ballast(model, options.ballast)
        if plan.form == "int8":
            round_weights(model)
        return model

    tokenizer = reading(options.model, lambda: _tokenizer(plan.source))
    with freeing_at_once():
        meet()
        model = load()
        meet()
        num_parameters = sum(p.numel() for p in model.parameters())
        reference = _reference(model, options.quantize, plan)
        kernels = None if model.tp_size and not can_pack(model) else decision.kernels
        runner = _runner(model, load, reference, options.slots, plan, kernels)
    decision = confirm(decision, options.exactness, runner, model)
    name = _display_name(options)
    codec = TextCodec(tokenizer, _eos_tokens(model))
    weights, cache = runner.held
    loaded = Loaded(
        name, _format(plan, options), codec, plan.context, decision.policy, num_parameters,
        decision.reason, weights=weights, cache=cache, planned=plan.memory.total,
        dtype=str(plan.dtype).removeprefix("torch."), digest=_digest(options),
        form=plan.form,
    )  # fmt: skip
    return runner, loaded, plan.cells


def _tokenizer(source: Source) -> Any:
    if source.gguf is not None:
        assert source.whole.gguf is not None, "what comes from a GGUF model is one"
        return read_gguf_tokenizer(source.whole.gguf)
    return AutoTokenizer.from_pretrained(source.where)


def _format(plan: LoadPlan, options: LoadOptions) -> str:
    return options.quantize if plan.source.gguf is None else plan.source.gguf.main_format


def _digest(options: LoadOptions) -> str:
    path = find_model(options.model, zoo.DIRECTORY, options.gguf)
    return "" if path is None else files_digest(path)


def _split(options: LoadOptions) -> tuple[PassModel, Loaded, int]:
    from edgecosine.engine.parallel import load_over_ranks  # each rank loads by this file

    return load_over_ranks(options)


def _reference(model: Any, quantize: Quantize, plan: LoadPlan) -> Reference:
    try:
        return take_reference(model, plan.context, plan.form)
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
    plan: LoadPlan,
    kernels: Kernels | None,
) -> PassModel:
    """The fastest way to run the model that gives what the model itself gives.

    A way that is tried takes the weights, so the next one loads them again.
    """
    family, threads, cells = str(model.config.model_type), torch.get_num_threads(), plan.cells
    if kernels is not None and can_fuse(model):
        fused = FusedModel(
            model, slots=slots, cells=cells, threads=threads, kernels=kernels, takes_weights=True,
            form=plan.form,
        )  # fmt: skip
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
    layered = SlotModel(
        model, slots=slots, cells=cells, threads=threads, kernels=kernels, form=plan.form
    )
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


def _weights(plan: LoadPlan, options: LoadOptions) -> Any:
    if (gguf := plan.source.gguf) is not None:
        if plan.source.base is not None:
            model = load_cut_model(plan.source, plan.config, plan.rounded)
        else:
            model = load_gguf_weights(gguf, plan.config, plan.rounded)
        return model.to(plan.device, plan.dtype)
    settings: dict[str, Any] = {
        "dtype": plan.dtype,
        "use_safetensors": True,
        "trust_remote_code": False,
        "attn_implementation": "eager",
        "tqdm_class": download_bar(),
    }
    if options.tensor_parallel > 1:
        from transformers.distributed.configuration_utils import DistributedConfig

        shards = DistributedConfig(tp_size=options.tensor_parallel)
        return AutoModelForCausalLM.from_pretrained(
            plan.source.where, **settings, distributed_config=shards
        )
    if options.quantize == "none":
        plain: Any = AutoModelForCausalLM.from_pretrained(plan.source.where, **settings)
        return plain.to(plan.device)
    for name in ("bitsandbytes", "transformers.integrations.bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quantization = _quantization(options.quantize, plan.dtype)
    settings |= {"device_map": plan.device, "quantization_config": quantization}
    return AutoModelForCausalLM.from_pretrained(plan.source.where, **settings)


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


def _eos_tokens(model: Any) -> list[int]:
    eos = model.generation_config.eos_token_id
    if eos is None:
        eos = model.config.get_text_config().eos_token_id
    if eos is None:
        return []
    return [eos] if isinstance(eos, int) else list(eos)


def _display_name(options: LoadOptions) -> str:
    is_known = options.model in zoo.names() or models.is_known(options.model)
    name = options.model if is_known else options.gguf or Path(options.model).name
    return f"{name}+ballast{options.ballast}" if options.ballast > 1 else name
