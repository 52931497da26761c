"""Forward passes of the target over all slots: flat passes on a CPU, a grid on a GPU.

Without the CPU kernels, a flat pass computes attention slot by slot, which is too slow for hundreds
of slots. In the grid every step processes one token of each slot, in plain torch and in one shape;
some slots read prompts while others generate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.lab.distill.conversations import ConversationSlot

_STEP = 64
"""KV positions; the attention kernels must copy masks of other lengths."""


class FlatFeeder:
    """Reads the pending tokens of all slots in one flat pass."""

    def __init__(self, model: ForwardModel) -> None:
        """`model` returns hidden states in place of logits."""
        self._model = model

    @torch.inference_mode()
    def feed(self, slots: Sequence[ConversationSlot]) -> torch.Tensor:
        """See `Feeder`; all tokens of all slots are read."""
        rows, keep = RowBuilder(), list[int]()
        for slot in slots:
            rows.add_sequence(slot.index, slot.fed, slot.tokens[slot.fed :])
            slot.fed = len(slot.tokens)
            keep.append(len(rows) - 1)
        return self._model.forward(rows.build(), keep)


class GridFeeder:
    """Reads one token of each slot of a Llama; all conversations begin with the same token."""

    def __init__(self, body: Any, *, slots: int, slot_size: int) -> None:
        """`body` is a LlamaModel on its device; a slot holds `slot_size` tokens."""
        self._body, config = body, body.config
        self._groups, self._head_size = config.num_key_value_heads, config.head_dim
        shape = (config.num_hidden_layers, slots, self._groups, slot_size, self._head_size)
        weight = body.norm.weight
        self._keys, self._values = (
            torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(2)
        )
        self._rows = torch.arange(slots, device=weight.device)
        self._positions = torch.arange(slot_size, device=weight.device)

    @torch.inference_mode()
    def feed(self, slots: Sequence[ConversationSlot]) -> torch.Tensor:
        """See `Feeder`; one token of each slot is read."""
        # Slots without a conversation read the first token again, which leaves their KV unchanged.
        numbers = np.zeros((2, len(self._rows)), dtype=np.int64)
        numbers[0] = slots[0].tokens[0]
        for slot in slots:
            numbers[:, slot.index] = slot.tokens[slot.fed], slot.fed
            slot.fed += 1
        visible = -(-max(slot.fed for slot in slots) // _STEP) * _STEP
        tokens, positions = torch.from_numpy(numbers).to(self._rows.device)
        states = self._step(tokens, positions, visible)
        return states[[slot.index for slot in slots if slot.is_read]]

    def _step(self, tokens: torch.Tensor, positions: torch.Tensor, visible: int) -> torch.Tensor:
        """States [slots, width]."""
        states = self._body.embed_tokens(tokens)[:, None]
        rotation = self._body.rotary_emb(states, positions[:, None])
        is_seen = (self._positions[:visible] <= positions[:, None])[:, None, None]
        for index, layer in enumerate(self._body.layers):
            inner = layer.input_layernorm(states)
            attended = self._attend(index, layer.self_attn, inner, rotation, positions, is_seen)
            states = states + layer.self_attn.o_proj(attended)
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        found: torch.Tensor = self._body.norm(states)[:, 0]
        return found

    def _attend(
        self,
        index: int,
        layer: Any,
        inner: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        positions: torch.Tensor,
        is_seen: torch.Tensor,
    ) -> torch.Tensor:
        query, key, value = (
            project(inner).view(len(inner), 1, -1, self._head_size).transpose(1, 2)
            for project in (layer.q_proj, layer.k_proj, layer.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *rotation)
        keys, values = self._keys[index], self._values[index]
        keys[self._rows, :, positions] = key[:, :, 0]
        values[self._rows, :, positions] = value[:, :, 0]
        visible = is_seen.shape[-1]
        # Query heads that share a key head become rows of one query.
        attended = scaled_dot_product_attention(
            query.reshape(len(inner), self._groups, -1, self._head_size),
            keys[:, :, :visible],
            values[:, :, :visible],
            attn_mask=is_seen,
        )
        return attended.reshape(len(inner), 1, -1)
