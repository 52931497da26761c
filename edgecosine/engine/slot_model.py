"""A transformers model over a cache of slots, run layer by layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from edgecosine.engine.attention import NAME, BatchRows, attending_by
from edgecosine.engine.cpu.deterministic_activations import (
    DeterministicFunctions,
    replace_activations,
)
from edgecosine.engine.cpu.experts import pack_experts
from edgecosine.engine.cpu.kernel_library import Kernels
from edgecosine.engine.cpu.packing import PackedLinear, pack_linear_layers
from edgecosine.engine.float32_reference import computing_in
from edgecosine.engine.forward_pass import ForwardModel, bytes_of
from edgecosine.engine.length_limits import shortened
from edgecosine.engine.options import WeightForm
from edgecosine.engine.rotary import rotate_by_sequence
from edgecosine.engine.slot_attention import SlotAttention
from edgecosine.engine.tensor_parallel.layers import pack_shards
from edgecosine.errors import ModelUnsupported


class SlotModel:
    """A causal LM with a cache of `slots` slots of `slot_size` tokens. Not thread-safe.

    With kernels, the logits of a row depend on the tokens that it sees alone, to the bit; without,
    up to rounding.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int,
        slot_size: int,
        threads: int,
        kernels: Kernels | None,
        form: WeightForm = "bfloat16",
        cells: torch.dtype | None = None,
    ) -> None:
        model.set_attn_implementation(NAME)
        rotate_by_sequence(model)
        if kernels is not None:
            if model.tp_size:
                pack_shards(model, kernels, threads)
            else:
                pack_linear_layers(model, kernels, threads, form)
                pack_experts(model, kernels, threads, form)
            replace_activations(model)
        self._functions = None if kernels is None else DeterministicFunctions()
        """In force during the first pass, and during others if that one needed it."""
        self._model = model.eval()  # type: ignore[no-untyped-call]
        # Threads split elementwise operators at places that depend on the number of rows, and the
        # ends of the parts are computed by other instructions.
        has_experts = any(p.dim() > 2 for p in model.parameters())
        self._torch_threads = threads if kernels is None or has_experts else 1
        self._state = SlotAttention(
            slots=slots, slot_size=slot_size, threads=threads, kernels=kernels, cells=cells
        )

    @property
    def slot_size(self) -> int:
        """KV positions of a slot, those for draft nodes included."""
        return self._state.slot_size

    @property
    def held(self) -> tuple[int, int]:
        """Bytes of the weights, and of the cache."""
        caches = self._state.layers.values()
        weights = bytes_of(itertools.chain(self._model.parameters(), self._model.buffers()))
        return weights, bytes_of(t for layer in caches for t in (layer.keys, layer.values))

    @torch.inference_mode()
    def forward(self, rows: BatchRows, keep: Sequence[int]) -> torch.Tensor:
        """Run the rows; returns float32 logits [len(keep), vocabulary] of the rows numbered in
        `keep`, on the device of the model."""
        slot_size = self._state.slot_size
        if (
            max(int(rows.kv_position.max()), int(rows.length.max()) - 1, int(rows.path.max()))
            >= slot_size
        ):
            raise IndexError("a KV position of a row is beyond the cache")
        self._state.rows = rows = rows.to(self._model.device)
        functions = self._functions or nullcontext()
        with attending_by(self._state), _torch_threads(self._torch_threads), functions:
            output = self._model(
                input_ids=rows.tokens[None],
                position_ids=rows.positions[None],
                attention_mask=None,
                use_cache=False,
                logits_to_keep=torch.tensor(keep, dtype=torch.long, device=self._model.device),
            )
        if self._functions is not None and not self._functions.num_replaced:
            self._functions = None
        if not self._state.layers:
            raise ModelUnsupported(
                f"model family {self._model.config.model_type!r} does not use the attention "
                "interface of transformers"
            )
        logits: torch.Tensor = output.logits[0].float()
        return logits

    @torch.inference_mode()
    def move(self, slot: int, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy keys and values from `source` to `target` KV positions of a slot, in all layers."""
        if list(source) == list(target):
            return
        origin, destination = torch.tensor(source), torch.tensor(target)
        for layer in self._state.layers.values():
            layer.move(slot, origin, destination)

    @torch.inference_mode()
    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy the KV positions start to end from slot to slot, in all layers."""
        for layer in self._state.layers.values():
            layer.copy(source, target, start, end)

    def clear(self, slot: int) -> None:
        """Does nothing: rows read no KV position that was written for another sequence."""

    @contextmanager
    def widely(self, slot_size: int) -> Iterator[ForwardModel]:
        """Context in which the model computes in float32, with one slot of `slot_size` tokens that
        are not rounded."""
        served = self._state
        packed = [module for module in self._model.modules() if isinstance(module, PackedLinear)]
        self._state = replace(served, slots=1, slot_size=slot_size, cells=None, layers={})
        for layer in packed:
            layer.is_wide = True
        try:
            with computing_in(torch.float32, self._model):
                yield self
        finally:
            self._state = served
            for layer in packed:
                layer.is_wide = False

    @contextmanager
    def shortened(self, limits: Mapping[str, int], _slot_size: int) -> Iterator[SlotModel]:
        """Context in which the length limits of the model are `limits`."""
        with shortened(self._model, limits):
            yield self


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Context in which torch's own operators run on `count` threads."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
