"""Decides at load which exactness policy holds, `bitwise` or `rounding`, and states the reason.

bitwise   the logits of a token depend on the tokens before it alone, to the bit: trees, co-batched
          requests, slots, chunks and restarts change nothing. All sums need a fixed order, hence
          the compiled kernels; each model is probed with its own weights.
rounding  the same up to the rounding of sums; greedy texts may differ where two tokens are nearly
          tied. On a CPU the same kernels run, since they are faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from edgecosine.engine.batch import RowBuilder, branch_among_siblings
from edgecosine.engine.cpu.kernel_library import Kernels, KernelsUnavailable, load_kernels
from edgecosine.engine.cpu.packing import PackedLinear
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.options import Exactness, Policy
from edgecosine.engine.rotary import mark_of, switching_length
from edgecosine.errors import ModelUnsupported
from edgecosine.protocol.wire.tree import ROOT, TokenTree

_LENGTH, _BEFORE = 13, 40
"""Number of tokens whose logits are compared, and of tokens before them."""
_COBATCHED = (1, 18, 38)
"""Numbers of other rows in the batch: few, and more than one block of stock kernels."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The policy, the reason for it, and the kernels to use."""

    policy: Policy
    reason: str
    kernels: Kernels | None


def decide(device: str, dtype: torch.dtype) -> Decision:
    """The best policy for a device and a dtype, before the model is probed."""
    if device != "cpu":
        return Decision(
            "rounding",
            f"sums on {device} depend on the batch shape; --device cpu has bitwise",
            None,
        )
    if dtype not in {torch.float32, torch.bfloat16}:
        reason = f"no kernels for {str(dtype).removeprefix('torch.')}; "
        return Decision("rounding", reason + "--dtype float32 or bfloat16 has bitwise", None)
    try:
        return Decision("bitwise", "the kernels compute all sums in a fixed order", load_kernels())
    except KernelsUnavailable as error:
        # Chains in place of trees would not help: the order of stock products depends on the rows.
        return Decision("rounding", f"no kernels: {error}", None)


def confirm(
    decision: Decision, asked: Exactness, model: ForwardModel, modules: nn.Module
) -> Decision:
    """The decision after probing the model, whose layers are `modules`.

    Raises ModelUnsupported when bitwise is requested and not available.
    """
    if asked == "rounding":
        return Decision("rounding", "requested", decision.kernels)
    if decision.policy == "bitwise" and (
        fault := stock_products(modules)
        or cobatching_fault(model, getattr(modules, "config", None))
    ):
        decision = Decision("rounding", fault, decision.kernels)
    require(decision, asked)
    return decision


def require(decision: Decision, asked: Exactness) -> None:
    """Raises ModelUnsupported when bitwise is requested and `decision` is rounding."""
    if asked == "bitwise" and decision.policy != "bitwise":
        raise ModelUnsupported(
            f"exactness bitwise is not available: {decision.reason} (or --exactness rounding)"
        )


def stock_products(modules: nn.Module) -> str | None:
    """A reason naming a matrix product that the kernels leave to torch; None: there is none."""
    for name, module in modules.named_modules():
        if type(module) in {nn.Linear, Conv1D, PackedLinear} or isinstance(module, nn.Embedding):
            continue
        # Biases of experts have two dimensions, too.
        weights = (p for name, p in module.named_parameters(recurse=False) if "bias" not in name)
        if any(weight.dim() > 1 for weight in weights):
            return f"torch computes the products of {type(module).__name__} ({name})"
    return None


def cobatching_fault(model: ForwardModel, config: Any = None) -> str | None:
    """A change of the batch that changes the bits of a row's logits; None where none was found.

    Elementwise operators of torch cause one where a layer's width is no multiple of their vectors.
    The same sequence runs at once, in pieces, as a branch of a tree and beside other rows, which
    have the last positions of the model's `config`.
    """
    probe = _Probe(model, config)
    tokens = [3 + 2 * i for i in range(_LENGTH)]
    reference = probe.run(tokens, _LENGTH, 0)
    for cut in (1, 4, _LENGTH - 1):
        for num_cobatched in (0, *_COBATCHED):
            if not torch.equal(probe.run(tokens, cut, num_cobatched), reference):
                return f"bits of a row differ in pieces of {cut} rows with {num_cobatched} others"
    if not torch.equal(probe.run_tree(tokens), reference[1:]):
        return "the bits of a row differ in a token tree"
    return None


class _Probe:
    """Runs a sequence in slot 0, after tokens that are read once, co-batched with other rows."""

    def __init__(self, model: ForwardModel, config: Any) -> None:
        text = None if config is None else config.get_text_config()
        most = getattr(text, "max_position_embeddings", 0) or model.slot_size
        last = min(model.slot_size, most) - 1
        switches_at = 0 if text is None else switching_length(text)
        self._model = model
        self._start = max(0, min(_BEFORE, model.slot_size - _LENGTH - max(_COBATCHED)))
        self._end = self._start + _LENGTH
        self._mark = mark_of(self._end, switches_at)
        self._cobatched_shift = last - self._end + mark_of(last + 1, switches_at)
        if self._start:
            rows = RowBuilder()
            rows.add_sequence(0, 0, range(1, self._start + 1), self._mark)
            model.forward(rows.build(), [0])

    def run(self, tokens: list[int], cut: int, num_cobatched: int) -> torch.Tensor:
        """Logits [length, vocabulary] of the sequence in two pieces, other rows before each."""
        parts = []
        for at, piece in ((0, tokens[:cut]), (cut, tokens[cut:])):
            if piece:
                rows = RowBuilder()
                rows.add_tree(0, self._end, _fan(num_cobatched), self._cobatched_shift)
                rows.add_sequence(0, self._start + at, piece, self._mark)
                keep = range(num_cobatched, num_cobatched + len(piece))
                parts.append(self._model.forward(rows.build(), keep))
        return torch.cat(parts)

    def run_tree(self, tokens: list[int]) -> torch.Tensor:
        """Logits of all tokens but the first, as nodes of a tree, each after a wrong sibling."""
        head = RowBuilder()
        head.add_sequence(0, self._start, tokens[:1], self._mark)
        self._model.forward(head.build(), [0])
        tree = branch_among_siblings(tokens[1:])
        rows = RowBuilder()
        rows.add_tree(0, self._start + 1, tree, self._mark)
        return self._model.forward(rows.build(), range(1, len(tree), 2))


def _fan(size: int) -> TokenTree:
    return TokenTree(tuple(range(1, size + 1)), (ROOT,) * size, (1.0,) * size, (1,) * size)
