"""Loads one model, or one rank's share of it: reads the weights, chooses a runner, tests it.

No code from a model directory is executed: weights are safetensors or GGUF, and remote code is
never trusted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from edgecosine.engine.cpu.blocks import round_weights
from edgecosine.engine.cpu.kernel_library import Kernels
from edgecosine.engine.cpu.native_llama import NativeLlama, can_fuse
from edgecosine.engine.cuda.graphs import capture_for, use_own_stream
from edgecosine.engine.cuda.padded_model import RUNS_TO_REPLAY, PaddedModel
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.loading.ballast import add_ballast
from edgecosine.engine.loading.cut_models import load_cut_model
from edgecosine.engine.loading.gguf_weights import load_gguf_weights
from edgecosine.engine.loading.load_codec import codec_of
from edgecosine.engine.loading.load_errors import refusing
from edgecosine.engine.loading.load_plan import (
    TREE_ROOM,
    LoadPlan,
    plan_load,
    reading,
)
from edgecosine.engine.loading.model_files import display_name, loaded_weights
from edgecosine.engine.loading.progress import download_bar, log_lines_once, showing_progress
from edgecosine.engine.loading.selftest import (
    Reference,
    check_as_served,
    check_family,
    take_reference,
)
from edgecosine.engine.loading.source_files import digest_of, file_of, read_tokenizer
from edgecosine.engine.loading.tensor_check import check_stored, check_tensors
from edgecosine.engine.options import Loaded, LoadOptions, Quantize
from edgecosine.engine.process_memory import freeing_at_once
from edgecosine.engine.rotary import switching_length
from edgecosine.engine.shortlist import ShortlistHead
from edgecosine.engine.slot_model import SlotModel
from edgecosine.engine.target.exactness import confirm, decide, require
from edgecosine.engine.tensor_parallel.layers import can_pack
from edgecosine.errors import ModelUnsupported

logger = logging.getLogger(__name__)


def load_model(
    options: LoadOptions, barrier: Callable[[], None] = lambda: None, room: int = TREE_ROOM
) -> tuple[ForwardModel, Loaded, int]:
    """Load a model, or this rank's share of it; also returns the KV positions of a slot.

    `barrier` waits for the other ranks: all check memory before any of them allocates some, and no
    rank waits in its first forward pass for another to load. `room` KV positions of a slot are
    reserved for draft nodes. Raises ModelUnavailable, ModelUnsupported or OutOfMemory.
    """
    log_lines_once()
    if options.threads:
        torch.set_num_threads(options.threads)
    plan = plan_load(options, room)
    decision = decide(plan.device, plan.dtype)
    require(decision, options.exactness)
    if plan.memory.origin:
        logger.info("dequantised: model=%s memory=%s", options.model, plan.memory.origin)
    plan.check()

    def load() -> Any:
        with showing_progress(options.model):
            model = reading(options.model, "its weights", lambda: _weights(plan, options))
        if options.ballast > 1:
            add_ballast(model, options.ballast)
        if plan.form != "bfloat16":
            head = model.get_output_embeddings()
            head = head.linear if isinstance(head, ShortlistHead) else head
            round_weights(model, plan.form, head, is_file_kept=options.weights == "auto")
        return model

    tokenizer = reading(options.model, "its tokenizer", lambda: read_tokenizer(plan.source))
    with freeing_at_once():
        barrier()
        model = load()
        barrier()
        num_parameters = sum(p.numel() for p in model.parameters())
        num_rows = int(model.get_input_embeddings().num_embeddings)
        reference = _reference(model, plan, options)
        kernels = None if model.tp_size and not can_pack(model) else decision.kernels
        runner = _runner(model, load, reference, options.slots, plan, kernels)
    decision = confirm(decision, options.exactness, runner, model)
    name = display_name(options)
    num_tokens = min(num_rows, reference.truth.shape[1])
    codec = codec_of(plan.source, model.config, tokenizer, num_tokens)
    weights, cache = runner.held
    loaded = Loaded(
        name, _format(plan, options), codec, plan.context, decision.policy, num_parameters,
        decision.reason, weights=weights, cache=cache, planned=plan.memory.total,
        dtype=str(plan.dtype).removeprefix("torch."), digest=digest_of(plan.source),
        form=plan.form, num_rows=num_rows, kv_dtype=str(plan.cells).removeprefix("torch."),
        switches_at=switching_length(model.config.get_text_config()),
    )  # fmt: skip
    return runner, loaded, plan.slot_size


def _format(plan: LoadPlan, options: LoadOptions) -> str:
    return options.quantize if plan.source.gguf is None else plan.source.gguf.main_format


def _reference(model: Any, plan: LoadPlan, options: LoadOptions) -> Reference:
    """The outputs of the stock model; fails where the device cannot run a quantised model."""
    what = f"{options.model!r} does not run here"
    if options.quantize != "none":
        what = f"{options.quantize} does not run on {plan.device} with this model"
        remedy = "; omit --quantize, or use another format"
    elif getattr(model, "is_quantized", False):
        remedy = f"; its layers are quantised for another device than {plan.device}"
    else:
        remedy = "; use another model, or another --dtype"
    with refusing(what, remedy):
        is_rounded = plan.cells not in {torch.float32, plan.dtype}
        return take_reference(model, plan.context, plan.form, is_cache_rounded=is_rounded)


def _runner(
    model: Any,
    reload: Callable[[], Any],
    reference: Reference,
    slots: int,
    plan: LoadPlan,
    kernels: Kernels | None,
) -> ForwardModel:
    """The fastest runner whose logits pass the self-test.

    A failed attempt has consumed the weights, so the next one loads them again.
    """
    family, threads, slot_size = (
        str(model.config.model_type),
        torch.get_num_threads(),
        plan.slot_size,
    )
    if kernels is not None and can_fuse(model):
        fused = NativeLlama(
            model, slots=slots, slot_size=slot_size, threads=threads, kernels=kernels,
            takes_weights=True, form=plan.form, cells=plan.asked_cells,
        )  # fmt: skip
        try:
            check_family(fused, reference, family)
        except ModelUnsupported as error:
            logger.warning("running layer by layer: reason=%s", error)
            del fused
            model = reload()
        else:
            return fused
    # Recording the collectives of several ranks is untested.
    if model.device.type == "cuda" and not model.tp_size:
        use_own_stream(model.device)
        if (
            static := fixed_shapes(model, reference, slots, slot_size, plan.asked_cells)
        ) is not None:
            return static
    layered = SlotModel(
        model,
        slots=slots,
        slot_size=slot_size,
        threads=threads,
        kernels=kernels,
        form=plan.form,
        cells=plan.asked_cells,
    )
    check_family(layered, reference, family)
    return layered


def fixed_shapes(
    model: Any,
    reference: Reference,
    slots: int,
    slot_size: int,
    cells: torch.dtype | None = None,
) -> ForwardModel | None:
    """The model in batches of fixed shapes; None when it does not pass the self-test."""
    family = str(model.config.model_type)
    try:
        static = PaddedModel(
            model, slots=slots, slot_size=slot_size, capture=capture_for(model.device), cells=cells
        )
        check_family(static, reference, family)
        for _ in range(RUNS_TO_REPLAY - 1):
            check_as_served(static, reference, family)
    except (ModelUnsupported, torch.OutOfMemoryError) as error:
        logger.warning("fixed batch shapes off: reason=%s", error)
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
        "output_loading_info": True,
        # `check_tensors` reports shapes that differ together with missing tensors.
        "ignore_mismatched_sizes": True,
    }
    if options.tensor_parallel > 1:
        from transformers.distributed.configuration_utils import DistributedConfig

        settings["distributed_config"] = DistributedConfig(tp_size=options.tensor_parallel)
    elif options.quantize != "none":
        for name in ("bitsandbytes", "transformers.integrations.bitsandbytes"):
            logging.getLogger(name).setLevel(logging.ERROR)
        quantization = _quantization(options.quantize, plan.dtype)
        settings |= {"device_map": plan.device, "quantization_config": quantization}
    is_here = Path(plan.source.where).is_dir()
    if is_here:
        check_stored(options.model, loaded_weights(Path(plan.source.where)), plan.config)
    loading: Any = AutoModelForCausalLM.from_pretrained(plan.source.where, **settings)
    model, info = loading
    check_tensors(options.model, model.config, info)
    if not is_here and (config := file_of(plan.source, "config.json")) is not None:
        check_stored(options.model, loaded_weights(config.parent), plan.config)
    is_placed = options.tensor_parallel > 1 or options.quantize != "none"
    return model if is_placed else model.to(plan.device)


def _quantization(quantize: Quantize, dtype: torch.dtype) -> Any:
    settings: dict[str, Any] = (
        {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": dtype,
        }
        if quantize == "nf4"
        # With a threshold above 0, outlier columns depend on the whole batch.
        else {"load_in_8bit": True, "llm_int8_threshold": 0.0}
    )
    return BitsAndBytesConfig(**settings)  # type: ignore[no-untyped-call]
