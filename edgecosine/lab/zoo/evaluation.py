"""Measures how well drafters predict the target: acceptance lengths and held-out losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from edgecosine.lab.zoo.generation import GenerationSampling

GAMMA = 6


@dataclass(frozen=True)
class Loss:
    """Held-out loss of a model in a domain."""

    nats_per_token: float
    bits_per_byte: float


def accepted_per_round(matches: Sequence[bool], gamma: int) -> list[int]:
    """Accepted draft tokens of each round along one text.

    `matches[i]` is whether the drafter, given the target's text up to i, chooses the target's
    token i. A chain of drafts is accepted as long as it equals the target's text, so these
    teacher-forced choices determine its acceptance. Rounds that would exceed the text are left
    out.
    """
    accepted, position = [], 0
    while position + gamma <= len(matches):
        run = 0
        while run < gamma and matches[position + run]:
            run += 1
        accepted.append(run)
        position += run + 1
    return accepted


@torch.inference_mode()
def drafter_choices(
    drafter: LlamaForCausalLM, tokens: Tensor, prompt: int, sampling: GenerationSampling
) -> Tensor:
    """The drafter's token at each new position [n, new] of the target's texts [n, all]."""
    hidden = drafter.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
    columns = []
    for position in range(prompt, tokens.shape[1]):
        logits = drafter.lm_head(hidden[:, position - 1])
        columns.append(sampling.choose(logits, position))
    return torch.stack(columns, 1)


def mean_accepted(
    drafter: LlamaForCausalLM,
    tokens: Tensor,
    prompt: int,
    sampling: GenerationSampling,
    gamma: int = GAMMA,
) -> float:
    """Mean accepted draft tokens per round, without the bonus token, over all rounds."""
    choices = drafter_choices(drafter, tokens, prompt, sampling)
    matches = (choices == tokens[:, prompt:]).tolist()
    rounds = [a for row in matches for a in accepted_per_round(row, gamma)]
    return sum(rounds) / len(rounds)


@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, rows: Tensor, token_bytes: Tensor) -> Loss:
    """Loss over windows (n, length); `token_bytes` (vocabulary,) counts the bytes of each token."""
    total = 0.0
    for batch in torch.split(rows, 8):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch[:, 1:].reshape(-1), reduction="sum"
        )
        total += float(loss)
    labels = rows[:, 1:]
    nats = total / labels.numel()
    byte_count = int(token_bytes[labels].sum())
    return Loss(nats, total / math.log(2) / byte_count)


def held_out_rows(tokens: list[int], length: int, most: int) -> Tensor:
    """Non-overlapping windows (n, length + 1), spread evenly over the held-out tokens."""
    count = len(tokens) // (length + 1)
    step = max(1, count // most)
    starts = [index * (length + 1) for index in range(0, count, step)][:most]
    return torch.tensor([tokens[start : start + length + 1] for start in starts])
