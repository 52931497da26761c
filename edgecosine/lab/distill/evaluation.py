"""Acceptance of drafters on the target's answers to held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from edgecosine.engine.gumbel import gumbel_rows
from edgecosine.engine.shortlist import ShortlistHead
from edgecosine.lab.distill.conversations import Conversation, ConversationTurn, Template
from edgecosine.lab.distill.prompts import held_out
from edgecosine.lab.zoo.evaluation import accepted_per_round

GAMMA = 6
"""Tokens of a draft, a chain of the drafter's most probable tokens."""


def held_out_turns(tokenizer: Any, temperature: float) -> list[ConversationTurn]:
    """All held-out prompts as turns; above temperature 0 the seed of a turn is its number."""
    turns = [(domain, text) for domain, texts in held_out().items() for text in texts]
    return [
        ConversationTurn(
            domain,
            tuple(tokenizer.encode(text, add_special_tokens=False)),
            temperature,
            is_whole=True,
            seed=number if temperature else None,
        )
        for number, (domain, text) in enumerate(turns)
    ]


def seed_of(
    done: Conversation, template: Template, turns: Sequence[ConversationTurn]
) -> int | None:
    """The seed of the turn that a conversation answers."""
    start, end = len(template.before), done.num_prompt - len(template.after)
    measured = tuple(int(token) for token in done.tokens[start:end])
    return next(turn.seed for turn in turns if turn.tokens == measured)


@torch.inference_mode()
def matches(drafter: Any, done: Conversation, seed: int | None) -> list[bool]:
    """For each token of an answer, whether the drafter would draft it after the preceding tokens.

    `drafter` is a model whose output layer is a `ShortlistHead`.
    """
    head = cast(ShortlistHead, drafter.lm_head)
    tokens = torch.from_numpy(done.tokens.astype(np.int64)).to(head.tokens.device)
    states = drafter.model(input_ids=tokens[None, :-1], use_cache=False).last_hidden_state[0]
    scores = head.linear(states[done.num_prompt - 1 :]).double()
    if seed is not None:
        scores /= done.temperature
        scores += gumbel_rows(seed, range(done.num_prompt, len(tokens)), head.tokens)
    best = head.tokens[scores.argmax(-1)]
    equal: list[bool] = (best == tokens[done.num_prompt :]).tolist()
    return equal


def mean_accepted(equal: Sequence[Sequence[bool]], gamma: int = GAMMA) -> float:
    """Mean accepted tokens of all rounds with chains of `gamma` tokens, without the bonus token."""
    rounds = [count for one in equal for count in accepted_per_round(one, gamma)]
    return sum(rounds) / max(1, len(rounds))
