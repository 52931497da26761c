"""The target as a teacher: its states before the output layer, and its output layer separately."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import LlamaForCausalLM

from edgecosine.engine.cpu.native_llama import NativeLlama
from edgecosine.engine.cpu.packing import PackedLinear
from edgecosine.engine.loading.gguf_file import GgufModel
from edgecosine.engine.loading.gguf_weights import (
    load_gguf_weights,
    read_gguf_config,
    read_gguf_tokenizer,
)
from edgecosine.engine.loading.load_plan import kernels_if_any
from edgecosine.engine.loading.sources import locate
from edgecosine.errors import ModelUnsupported
from edgecosine.lab.distill.batch_runners import FlatFeeder, GridFeeder
from edgecosine.lab.distill.conversations import Feeder


@dataclass(frozen=True)
class Teacher:
    """`feeder` returns states before the output layer; `head` computes their logits."""

    feeder: Feeder
    head: Callable[[torch.Tensor], torch.Tensor]
    tokenizer: Any


def load_stock(name: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """The target as a transformers model, on the CPU.

    Raises ModelUnavailable, and ModelUnsupported for other kinds of models.
    """
    gguf = _gguf(name)
    model = load_gguf_weights(gguf, read_gguf_config(gguf), dtype)
    if not isinstance(model, LlamaForCausalLM):
        raise ModelUnsupported(f"{name} is not a Llama, so no drafter can be cut from it")
    return model


def load_teacher(name: str, device: str, *, slots: int, slot_size: int) -> Teacher:
    """The target with a separate output layer, in bfloat16.

    Raises the errors of `load_stock`.
    """
    stock = load_stock(name, torch.bfloat16)
    weight = head_of(stock).clone()
    threads = torch.get_num_threads()
    kernels = kernels_if_any() if device == "cpu" else None
    tokenizer = read_gguf_tokenizer(_gguf(name))
    if kernels is not None:
        stock.lm_head = _identity(stock.config.hidden_size)
        model = NativeLlama(
            stock, slots=slots, slot_size=slot_size, threads=threads, kernels=kernels
        )
        head = PackedLinear(weight, None, kernels, threads, torch.float32)
        return Teacher(FlatFeeder(model), head, tokenizer)
    body = nn.Module.to(stock, device).model
    weight = weight.to(device)

    def plain_head(states: torch.Tensor) -> torch.Tensor:
        return (states.to(weight.dtype) @ weight.T).float()

    feeder = GridFeeder(body, slots=slots, slot_size=slot_size)
    return Teacher(feeder, plain_head, tokenizer)


def head_of(stock: LlamaForCausalLM) -> torch.Tensor:
    """The output layer [vocabulary, width]."""
    return cast(nn.Linear, stock.lm_head).weight.detach()


def _gguf(name: str) -> GgufModel:
    gguf = locate(name).gguf
    if gguf is None:
        raise ModelUnsupported(f"{name} is not a GGUF model")
    return gguf


def _identity(width: int) -> nn.Linear:
    linear = nn.Linear(width, width, bias=False, dtype=torch.bfloat16)
    linear.weight = nn.Parameter(torch.eye(width, dtype=torch.bfloat16), requires_grad=False)
    return linear
