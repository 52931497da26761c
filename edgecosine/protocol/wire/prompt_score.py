"""What a model would have said of tokens that it was told."""

from __future__ import annotations

from dataclasses import dataclass

MAX_SCORED_TOKENS = 64
"""Tokens that it is about, at most."""


@dataclass(frozen=True, slots=True)
class PromptScore:
    """About the newest tokens of a prefix that a drafter had not guessed but read.

    top1_matches  for each, oldest first, whether it was the drafter's own first guess there
    nll           mean of -log q(token), in nats per token
    """

    top1_matches: tuple[bool, ...] = ()
    nll: float = 0.0


NO_PROMPT_SCORE = PromptScore()
