"""Training of a student: batches of conversations, and a loss that approaches acceptance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from edgecosine.lab.distill.conversations import Conversation

_PADDING = 0
_SHARPNESS = 3.0


@dataclass(frozen=True)
class Settings:
    """Settings of a training: tokens of a batch including padding, and epochs over the text.

    The learning rate rises for `warm_up` steps, stays, and falls to zero over the last share
    `decay` of the steps.
    """

    epochs: float
    learning_rate: float
    batch_tokens: int = 1200
    warm_up: int = 30
    decay: float = 0.35
    seed: int = 1


@dataclass(frozen=True)
class TrainingBatch:
    """Padded conversations.

    tokens   [rows, length]
    indices  [answer tokens]: for each, the index of the student's state in the flattened rows
    states   [answer tokens, width]: the target's
    """

    tokens: Tensor
    indices: Tensor
    states: Tensor

    @property
    def num_tokens(self) -> int:
        """Computed tokens, including padding."""
        return self.tokens.numel()

    def to(self, device: torch.device) -> TrainingBatch:
        """The batch on a device; the host does not wait for the copy to a GPU."""
        if device.type == "cpu":
            return self
        tensors = (self.tokens, self.indices, self.states)
        return TrainingBatch(*(t.pin_memory().to(device, non_blocking=True) for t in tensors))


def batch_of(conversations: Sequence[Conversation]) -> TrainingBatch:
    """Conversations padded at their ends, which causal attention never reads."""
    length = max(len(c.tokens) for c in conversations) - 1
    tokens = np.full((len(conversations), length), _PADDING, dtype=np.int64)
    indices = []
    for row, one in enumerate(conversations):
        tokens[row, : len(one.tokens) - 1] = one.tokens[:-1]
        indices.append(row * length + np.arange(one.num_prompt - 1, len(one.tokens) - 1))
    states = np.concatenate([c.states for c in conversations])
    return TrainingBatch(
        torch.from_numpy(tokens),
        torch.from_numpy(np.concatenate(indices)),
        torch.from_numpy(states),
    )


def plan(lengths: Sequence[int], settings: Settings) -> list[list[int]]:
    """Indices of the conversations in each batch; those of one batch have similar lengths, which
    saves padding."""
    rng = np.random.default_rng(settings.seed)
    batches: list[list[int]] = []
    for epoch in range(math.ceil(settings.epochs)):
        share = min(1.0, settings.epochs - epoch)
        chosen = rng.permutation(len(lengths))[: int(share * len(lengths))]
        blurred = {int(i): lengths[i] * (1 + 0.1 * rng.random()) for i in chosen}
        found, batch, longest = list[list[int]](), list[int](), 0
        for i in sorted(blurred, key=lambda i: blurred[i]):
            longest = max(longest, lengths[i])
            if batch and longest * (len(batch) + 1) > settings.batch_tokens:
                found.append(batch)
                batch, longest = [], lengths[i]
            batch.append(i)
        found += [batch] if batch else []
        batches += (found[i] for i in rng.permutation(len(found)))
    return batches


def rate(step: int, steps: int, settings: Settings, spent: float = 0.0) -> float:
    """The learning rate of a step. Its decay follows the steps or the used share of the time,
    `spent`, whichever is further."""
    rising = (step + 1) / settings.warm_up
    falling = (steps - step) / max(1.0, steps * settings.decay)
    late = max(0.0, 1 - spent) / settings.decay
    return settings.learning_rate * min(1.0, rising, falling, late)


def states_of(student: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """The student's states [rows, length, width] before the output layer."""
    body = cast(Any, student.model)
    if student.config._attn_implementation != "sdpa":
        return cast(Tensor, body(input_ids=tokens, use_cache=False).last_hidden_state)
    # The forward pass of transformers first searches for packed sequences and so waits for the GPU.
    states = body.embed_tokens(tokens)
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
    rotation = body.rotary_emb(states, position_ids=positions)
    for layer in body.layers:
        states = layer(
            states, attention_mask=None, position_embeddings=rotation, position_ids=positions
        )
    return cast(Tensor, body.norm(states))


class AcceptanceLoss:
    """k KL(p || q) + (1 - k) (1 - sum of min(p, q)) with k = exp(-3 sum of min(p, q)), for the
    target's distribution p and the student's q: at first mostly the divergence, later mostly the
    acceptance (LK losses, arXiv 2602.23881)."""

    def __init__(self, head: Tensor) -> None:
        """`head` [shortlist, width]: the target's output layer for the tokens of the shortlist."""
        self._head = head

    def __call__(
        self, student: LlamaForCausalLM, batch: TrainingBatch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the mean acceptance at temperature 1, and the share of equal best tokens."""
        hidden = states_of(student, batch.tokens).flatten(0, 1)
        own = student.lm_head(hidden.index_select(0, batch.indices))
        with torch.no_grad():
            wanted = batch.states.to(own.dtype) @ self._head.to(own.dtype).T
            teacher = wanted.float().log_softmax(-1)
        log_q = own.float().log_softmax(-1)
        p = teacher.exp()
        divergence = (p * (teacher - log_q)).sum(-1)
        overlap = torch.minimum(p, log_q.exp()).sum(-1)
        weight = torch.exp(-_SHARPNESS * overlap.detach())
        loss = (weight * divergence + (1 - weight) * (1 - overlap)).mean()
        equal = (own.argmax(-1) == wanted.argmax(-1)).float().mean()
        return loss, overlap.detach().mean(), equal


def batches_from(
    conversations: Sequence[Conversation], order: Sequence[Sequence[int]]
) -> Iterator[TrainingBatch]:
    """Yields the planned batches in order."""
    for chosen in order:
        yield batch_of([conversations[i] for i in chosen])
