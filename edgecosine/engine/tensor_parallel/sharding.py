"""Checks whether a model can be split over a number of ranks."""

from __future__ import annotations

from typing import Any

import torch

from edgecosine.engine.options import LoadOptions
from edgecosine.errors import ModelUnsupported

_KEY_LAYERS = ("k_proj", "qkv_proj", "query_key_value")


def check_shards(options: LoadOptions, config: Any, device: str) -> str:
    """The kind of device of the ranks: `cpu` or `cuda`.

    Raises ModelUnsupported when the model, the options or the machine do not support
    `options.tensor_parallel` ranks.
    """
    size = options.tensor_parallel
    if options.quantize != "none":
        raise ModelUnsupported("a quantised model cannot be tensor-parallel")
    if options.ballast > 1:
        raise ModelUnsupported("ballast widens whole layers: it cannot be tensor-parallel")
    text = config.get_text_config()
    if not text.base_model_tp_plan:
        raise ModelUnsupported(
            f"model family {config.model_type!r} has no tensor-parallel plan in transformers"
        )
    if shards_cache(text):
        _check_heads(text, size)
    return _check_device(options, device)


def shards_cache(text: Any) -> bool:
    """Whether each rank caches keys and values of its own heads only."""
    plan = text.base_model_tp_plan or {}
    return any(
        key.rpartition(".")[2] in _KEY_LAYERS and style == "colwise" for key, style in plan.items()
    )


def _check_heads(text: Any, size: int) -> None:
    heads = text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    if heads % size or groups % size:
        sizes = [n for n in range(2, groups + 1) if not (heads % n or groups % n)]
        allowed = f"take {', '.join(map(str, sizes))}" if sizes else "there is no such number"
        raise ModelUnsupported(
            f"tensor_parallel = {size} must divide the {heads} attention heads and {groups} "
            f"key-value heads of this {text.model_type!r} model: {allowed}"
        )


def _check_device(options: LoadOptions, device: str) -> str:
    kind = device.partition(":")[0]
    if ":" in options.device:
        raise ModelUnsupported(f"a tensor-parallel target uses the devices from 0: set {kind!r}")
    if kind == "cpu":
        # transformers places its mesh on the accelerator whenever there is one.
        if torch.accelerator.is_available():
            raise ModelUnsupported(
                "a tensor-parallel target cannot run on the CPU of a machine with a GPU: hide the "
                "GPU, for example by CUDA_VISIBLE_DEVICES="
            )
    elif kind != "cuda":
        raise ModelUnsupported(f"a tensor-parallel target runs on cpu or cuda, not {kind!r}")
    elif torch.cuda.device_count() < options.tensor_parallel:
        raise ModelUnsupported(
            f"tensor_parallel = {options.tensor_parallel} needs as many GPUs; there are "
            f"{torch.cuda.device_count()}"
        )
    return kind
