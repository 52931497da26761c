"""Runs models of the Llama kind by one call of the kernels per forward pass.

Weights and rotary tables come from the transformers model, with which the self-test at load
compares the results. Models of other kinds run as a `SlotModel`.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgecosine.engine.attention import BatchRows, LayerCache
from edgecosine.engine.batch import RowColumns
from edgecosine.engine.cpu.kernel_library import Kernels
from edgecosine.engine.cpu.native_structs import (
    MATRICES,
    NativeDecoder,
    NativeDraftWork,
    NativeLayer,
    NativeWeight,
    WeightLayout,
)
from edgecosine.engine.cpu.packing import (
    Arena,
    most_bytes,
    narrowest,
    pack,
    take_weight,
)
from edgecosine.engine.forward_pass import ForwardModel, bytes_of
from edgecosine.engine.kv_cells import row_cells
from edgecosine.engine.length_limits import WINDOW
from edgecosine.engine.options import WeightForm
from edgecosine.engine.shortlist import ShortlistHead, padded, spread

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that depend on the position only."""
DTYPES = (torch.float32, torch.bfloat16)
CACHE = torch.float32
"""Number format of keys and values unless another is requested, for every format of computation."""


def can_fuse(model: PreTrainedModel) -> bool:
    """Whether `NativeLlama` implements this model."""
    config: Any = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return (
        not model.tp_size
        and config.model_type in FAMILIES
        and config.hidden_act == "silu"
        and rope.get("rope_type", "default") in ROPE_TYPES
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and all(type(m) is nn.Linear for m in linears)
        and model.dtype in DTYPES
        and all(p.dtype == model.dtype and p.device.type == "cpu" for p in model.parameters())
    )


class NativeLlama:
    """Gives the logits of `SlotModel`, for models that `can_fuse`. Not thread-safe.

    With `takes_weights`, weights are removed from the model as they are packed, so that a load
    never holds two copies.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int,
        slot_size: int,
        threads: int,
        kernels: Kernels,
        takes_weights: bool = False,
        form: WeightForm = "bfloat16",
        cells: torch.dtype | None = None,
    ) -> None:
        body: Any = model.model
        config: Any = model.config
        self._kernels, self._slot_size, self._takes_weights = kernels, slot_size, takes_weights
        self._form: WeightForm = form
        self._kept: list[torch.Tensor] = []
        """Tensors whose memory the decoder refers to."""
        linears = (module for module in model.modules() if isinstance(module, nn.Linear))
        shapes = [(linear.out_features, linear.in_features) for linear in linears]
        self._arena = Arena(most_bytes(shapes, kernels, form), kernels)
        attention = body.layers[0].self_attn
        head_size = int(attention.head_dim)
        groups = int(config.num_key_value_heads)
        cells = cells or CACHE
        shape = (slots, groups, slot_size, row_cells(head_size, cells))
        self._caches: list[LayerCache] = []
        layers = (NativeLayer * len(body.layers))(
            *(
                self._layer(layer, shape, cells, _window(config, index))
                for index, layer in enumerate(body.layers)
            )
        )
        embedding = narrowest(self._weight_of(body.embed_tokens))
        self._shortlist = _shortlist(model)
        head = self._weight(model.lm_head.linear if self._shortlist is not None else model.lm_head)
        cosine, sine = _rotary(body.rotary_emb, slot_size, head_size)
        self._num_outputs = int(head.outputs)
        self._decoder = NativeDecoder(
            layers=layers,
            head=head,
            embedding=self._keep(embedding),
            output_norm=self._keep(body.norm.weight.detach().float()),
            cosine=self._keep(cosine),
            sine=self._keep(sine),
            shortlist=self._keep(padded(self._shortlist.tokens))
            if self._shortlist is not None
            else None,
            num_layers=len(body.layers),
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            groups=groups,
            head_size=head_size,
            inner=body.layers[0].mlp.gate_proj.out_features,
            slot_size=slot_size,
            embedding_bytes=embedding.element_size(),
            threads=threads,
            vocabulary=embedding.shape[0],
            slots=slots,
            cell_bytes=cells.itemsize,
            epsilon=config.rms_norm_eps,
            scale=float(attention.scaling),
        )

    @property
    def slot_size(self) -> int:
        """KV positions of a slot, those for draft nodes included."""
        return self._slot_size

    @property
    def held(self) -> tuple[int, int]:
        """Bytes of the weights, and of the cache."""
        cache = bytes_of(t for layer in self._caches for t in (layer.keys, layer.values))
        return self._arena.used + bytes_of(self._kept), cache

    def forward(self, rows: BatchRows, keep: Sequence[int]) -> torch.Tensor:
        """Run the rows; returns float32 logits [len(keep), vocabulary] of the rows numbered in
        `keep`.

        Raises IndexError for a token or a position outside of the model or the cache.
        """
        logits = torch.empty(len(keep), self._num_outputs)
        wanted = torch.tensor(keep, dtype=torch.int64)
        do_fit = self._kernels.library.edgecosine_decode(
            ctypes.byref(self._decoder),
            rows.tokens.data_ptr(), rows.positions.data_ptr(), rows.slot.data_ptr(),
            rows.kv_position.data_ptr(), rows.length.data_ptr(), rows.path.data_ptr(),
            rows.path_length.data_ptr(), rows.path.shape[1], rows.tokens.shape[0],
            wanted.data_ptr(), len(keep), logits.data_ptr(),
        )  # fmt: skip
        if not do_fit:
            raise IndexError("a token or a position of a row is beyond the model or the cache")
        if self._shortlist is not None:
            return spread(logits, self._shortlist.tokens, self._shortlist.vocabulary)
        return logits

    def most_probable(self, rows: RowColumns, keep: Sequence[int]) -> list[int]:
        """Run the rows; returns the token of the highest logit, the lowest of equal ones, of each
        row numbered in `keep`, or -1 where logits are not finite.

        Raises IndexError as `forward` does.
        """
        wanted, tokens = array("q", keep), (ctypes.c_int64 * len(keep))()
        do_fit = self._kernels.library.edgecosine_decode_greedily(
            ctypes.byref(self._decoder),
            *(
                column.buffer_info()[0]
                for column in (
                    rows.tokens, rows.positions, rows.slot, rows.kv_position, rows.length,
                    rows.path, rows.path_length,
                )
            ),
            rows.longest, len(rows.tokens), wanted.buffer_info()[0], len(keep), tokens,
        )  # fmt: skip
        if not do_fit:
            raise IndexError("a token or a position of a row is beyond the model or the cache")
        return list(tokens)

    def draft_step(self, works: ctypes.Array[NativeDraftWork]) -> int:
        """One step of drafting for all works in one forward pass; returns its number of rows.

        Raises IndexError as `forward` does.
        """
        rows: int = self._kernels.library.edgecosine_draft_step(
            ctypes.byref(self._decoder), works, len(works)
        )
        if rows < 0:
            raise IndexError("a token or a position of a row is beyond the model or the cache")
        return rows

    def move(self, slot: int, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy keys and values from `source` to `target` KV positions of a slot, in all layers."""
        if list(source) == list(target):
            return
        origin, destination = torch.tensor(source), torch.tensor(target)
        for cache in self._caches:
            cache.move(slot, origin, destination)

    @torch.inference_mode()
    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy the KV positions start to end from slot to slot, in all layers."""
        for cache in self._caches:
            cache.copy(source, target, start, end)

    def clear(self, slot: int) -> None:
        """Does nothing: the kernels read only KV positions that a row sees."""

    @contextmanager
    def widely(self, _slot_size: int) -> Iterator[ForwardModel]:
        """Context in which linear layers do not round their inputs, nor the cache keys and values;
        it then has one slot."""
        caches = self._caches
        if self._decoder.cell_bytes < CACHE.itemsize:
            shape = (1, *caches[0].keys.shape[1:3], self._decoder.head_size)
            # Pages that no test touches are never in memory.
            self._use([_allocate(torch.empty, shape, CACHE) for _ in caches])
        layers = self._decoder.layers[: self._decoder.num_layers]
        weights = [getattr(layer, name) for layer in layers for name in MATRICES]
        weights.append(self._decoder.head)
        layouts = [weight.layout for weight in weights]
        for weight, layout in zip(weights, layouts, strict=True):
            weight.layout = WeightLayout(layout).wide
        try:
            yield self
        finally:
            for weight, layout in zip(weights, layouts, strict=True):
                weight.layout = layout
            self._use(caches)

    def _use(self, caches: list[LayerCache]) -> None:
        """Store keys and values in these caches from now on."""
        self._caches, decoder, keys = caches, self._decoder, caches[0].keys
        decoder.slots, decoder.cell_bytes = keys.shape[0], keys.element_size()
        for layer, cache in zip(decoder.layers[: decoder.num_layers], caches, strict=True):
            layer.keys, layer.values = cache.keys.data_ptr(), cache.values.data_ptr()

    @contextmanager
    def shortened(self, limits: Mapping[str, int], _slot_size: int) -> Iterator[NativeLlama]:
        """Context in which windows have the length in `limits`."""
        layers = [
            layer for layer in self._decoder.layers[: self._decoder.num_layers] if layer.window
        ]
        windows = [layer.window for layer in layers]
        try:
            for layer in layers:
                layer.window = limits.get(WINDOW, layer.window)
            yield self
        finally:
            for layer, window in zip(layers, windows, strict=True):
                layer.window = window

    def _keep(self, tensor: torch.Tensor) -> int:
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _weight_of(self, module: nn.Linear | nn.Embedding) -> torch.Tensor:
        return take_weight(module) if self._takes_weights else module.weight.detach()

    def _weight(self, *linears: nn.Linear) -> NativeWeight:
        """One packed matrix with the outputs of all `linears`."""
        outputs = sum(linear.out_features for linear in linears)
        weights = [self._weight_of(linear) for linear in linears]
        packed = pack(weights, self._kernels, self._form, self._arena.take)
        biases = [linear.bias for linear in linears if linear.bias is not None]
        bias = self._keep(torch.cat([b.detach().float() for b in biases])) if biases else None
        values = packed.values.data_ptr()
        return NativeWeight(values, bias, outputs, linears[0].in_features, int(packed.layout))

    def _layer(
        self, layer: Any, cache_shape: tuple[int, ...], cells: torch.dtype, window: int
    ) -> NativeLayer:
        attention, mlp = layer.self_attn, layer.mlp
        norms = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        query_norm, key_norm = (n and self._keep(n.weight.detach().float()) for n in norms)
        # Matrices lie in the order of their use, since what follows is prefetched. The cache is
        # allocated last, when the unpacked weights of the layer are freed.
        packed = {
            "query_key_value": self._weight(attention.q_proj, attention.k_proj, attention.v_proj),
            "output": self._weight(attention.o_proj),
            "gate_up": self._weight(mlp.gate_proj, mlp.up_proj),
            "down": self._weight(mlp.down_proj),
        }
        cache = _allocate(torch.zeros, cache_shape, cells)
        self._caches.append(cache)
        return NativeLayer(
            **packed,
            input_norm=self._keep(layer.input_layernorm.weight.detach().float()),
            middle_norm=self._keep(layer.post_attention_layernorm.weight.detach().float()),
            query_norm=query_norm,
            key_norm=key_norm,
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            window=window,
        )


def _allocate(
    make: Callable[..., torch.Tensor], shape: tuple[int, ...], cells: torch.dtype
) -> LayerCache:
    return LayerCache(make(shape, dtype=cells), make(shape, dtype=cells))


def _shortlist(model: PreTrainedModel) -> ShortlistHead | None:
    head: Any = model.lm_head
    return head if isinstance(head, ShortlistHead) else None


def _window(config: Any, layer: int) -> int:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[layer] != "sliding_attention":
        return 0
    return int(getattr(config, "sliding_window", None) or 0)


@torch.inference_mode()
def _rotary(module: Any, positions: int, head_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [positions, head size / 2], computed by the model itself."""
    cosine, sine = module(torch.zeros(1), torch.arange(positions)[None])
    half = head_size // 2
    return cosine[0, :, :half].float(), sine[0, :, :half].float()
