"""Distil a drafter from the target's cached hidden states over domain text and its own text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaForCausalLM

from edgecosine.lab.zoo.generation import GenerationSampling, generate
from edgecosine.lab.zoo.training import Tokens, TrainSettings

States = NDArray[np.float16]


@dataclass(frozen=True)
class PoolSettings:
    """Amount of teacher material for each domain; lengths are in tokens."""

    continuations: int = 640
    texts: int = 1024
    length: int = 192
    prompt: int = 48
    batch: int = 64
    temperature: float = 0.8
    seed: int = 7


@dataclass(frozen=True)
class DistillationText:
    """Tokens (n, length) and the target's hidden states (n, length - 1, width) before its head."""

    tokens: Tokens
    hidden: States


def _cut(source: Tokens, count: int, length: int, rng: np.random.Generator) -> Tensor:
    starts = rng.integers(0, len(source) - length, size=count)
    rows = np.stack([source[start : start + length] for start in starts])
    return torch.from_numpy(rows.astype(np.int64))


def _pool(tokens: Tensor, hidden: Tensor) -> DistillationText:
    return DistillationText(tokens.numpy().astype(np.uint16), hidden.numpy().astype(np.float16))


def continuation_pools(
    target: LlamaForCausalLM, source: Tokens, settings: PoolSettings
) -> Iterator[DistillationText]:
    """Continuations of training prompts by the target; greedy and sampled batches take turns."""
    rng = np.random.default_rng(settings.seed)
    for start in range(0, settings.continuations, settings.batch):
        prompts = _cut(source, settings.batch, settings.prompt, rng)
        temperature = 0.0 if start // settings.batch % 2 == 0 else settings.temperature
        seeds = torch.arange(settings.batch) + 1_000_000 + start
        made = generate(
            target,
            prompts,
            settings.length - settings.prompt,
            GenerationSampling(temperature, seeds),
        )
        yield _pool(made.tokens, made.hidden)


@torch.inference_mode()
def text_pools(
    target: LlamaForCausalLM, source: Tokens, settings: PoolSettings
) -> Iterator[DistillationText]:
    """Domain text with the target's hidden states, in batches that fit the processor's caches."""
    rng = np.random.default_rng(settings.seed + 1)
    rows = max(1, settings.batch // 8)
    for _ in range(0, settings.texts, rows):
        tokens = _cut(source, rows, settings.length, rng)
        hidden = target.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        yield _pool(tokens, hidden)


def join(pools: Sequence[DistillationText]) -> DistillationText:
    """One pool with the rows of all pools."""
    return DistillationText(
        np.concatenate([pool.tokens for pool in pools]),
        np.concatenate([pool.hidden for pool in pools]),
    )


def pool_batches(
    continuations: Sequence[DistillationText],
    texts: Sequence[DistillationText],
    settings: TrainSettings,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield tokens (rows, length) and hidden states; half of the rows are the target's own text.

    Within each kind the domains take turns. Every pool is read in shuffled epochs.
    """
    streams = [_rows(pool, settings.seed + 31 * i) for i, pool in enumerate(continuations)]
    others = [_rows(pool, settings.seed + 31 * i + 7) for i, pool in enumerate(texts)]
    turn = 0
    while True:
        picked = []
        for row in range(settings.rows):
            kind = streams if row % 2 == 0 else others
            picked.append(next(kind[turn // 2 % len(kind)]))
            turn += 1
        tokens = np.stack([row[0] for row in picked]).astype(np.int64)
        hidden = np.stack([row[1] for row in picked]).astype(np.float32)
        yield torch.from_numpy(tokens), torch.from_numpy(hidden)


def _rows(pool: DistillationText, seed: int) -> Iterator[tuple[Tokens, States]]:
    rng = np.random.default_rng(seed)
    while True:
        for index in rng.permutation(len(pool.tokens)):
            yield pool.tokens[index], pool.hidden[index]


class DistillationLoss:
    """KL(target || drafter) over the whole vocabulary plus `hard_share` of the cross-entropy, in
    nats per token."""

    def __init__(self, drafter: LlamaForCausalLM, head: Tensor, hard_share: float) -> None:
        self._drafter = drafter
        self._head = head
        self._hard_share = hard_share

    def __call__(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, hidden = batch
        teacher = (hidden @ self._head.T).log_softmax(-1)
        student = self._drafter(input_ids=tokens[:, :-1], use_cache=False).logits.log_softmax(-1)
        divergence = (teacher.exp() * (teacher - student)).sum(-1).mean()
        hard = -student.gather(-1, tokens[:, 1:, None]).mean()
        loss: Tensor = divergence + self._hard_share * hard
        return loss


@torch.no_grad()
def inherit_embedding(drafter: LlamaForCausalLM, head: Tensor) -> None:
    """Start the drafter's embedding from the target's principal directions, at its own scale."""
    width = drafter.config.hidden_size
    _, _, directions = torch.linalg.svd(head, full_matrices=False)
    projected = head @ directions[:width].T
    weight = drafter.model.embed_tokens.weight
    weight.copy_(projected * (weight.std() / projected.std()))
