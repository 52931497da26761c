"""Counts the answers that speculation changes where sums depend on the shape of a forward pass.

Each prompt is answered alone without drafts, and again with drafts of mixed quality and with other
requests in the same passes. If every sum has a fixed order the count is 0; otherwise it is a
property of the device, the dtype and the model, and is published.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from edgecosine.engine.base import TargetEngine, VerifyWork, expect_verified
from edgecosine.lab.engine_calls import forked_tree
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.tree import EMPTY_TREE, TokenTree

Drafts = Callable[[list[int]], TokenTree]

_SESSIONS = 8
_RIGHT = 0.75
"""Share of draft tokens that equal the plain answer's."""


def count_diverging(engine: TargetEngine, prompts: Sequence[list[int]], length: int) -> int:
    """Number of greedy answers of `length` tokens that differ under speculation."""
    plain = [_answers(engine, [prompt], length, [_nothing])[0] for prompt in prompts]
    diverging = 0
    for start in range(0, len(prompts), _SESSIONS):
        batch, truths = prompts[start : start + _SESSIONS], plain[start : start + _SESSIONS]
        drafts = [
            forked_drafts(prompt + truth, seed=start + i)
            for i, (prompt, truth) in enumerate(zip(batch, truths, strict=True))
        ]
        answers = _answers(engine, batch, length, drafts)
        diverging += sum(one != other for one, other in zip(answers, truths, strict=True))
    return diverging


def _nothing(_: list[int]) -> TokenTree:
    return EMPTY_TREE


def forked_drafts(truth: Sequence[int], seed: int) -> Drafts:
    """A function that drafts for a sequence: up to twelve nodes in two branches, the second of
    which is mostly right."""
    rng = random.Random(seed)

    def drafts(sequence: list[int]) -> TokenTree:
        right = list(truth[len(sequence) : len(sequence) + rng.randrange(7)])
        if not right:
            return EMPTY_TREE
        right = [t if rng.random() < _RIGHT else max(0, t - 1) for t in right]
        return forked_tree([right[0] - 1 if right[0] else 1, *right[1:]], right)

    return drafts


def _answers(
    engine: TargetEngine, prompts: Sequence[list[int]], length: int, drafts: Sequence[Drafts]
) -> list[list[int]]:
    sequences = [list(prompt) for prompt in prompts]
    trees = [EMPTY_TREE] * len(prompts)
    while todo := [
        i for i, s in enumerate(sequences) if len(s) < len(prompts[i]) + length
    ]:  # fmt: skip
        works = [
            VerifyWork(str(i), tuple(sequences[i]), len(prompts[i]), trees[i], Sampling())
            for i in todo
        ]
        for i, outcome in zip(todo, engine.step(works).outcomes, strict=True):
            verified = expect_verified(outcome)
            if verified is None:
                continue
            sequences[i] += [*(trees[i].tokens[node] for node in verified.path), verified.bonus]
            trees[i] = drafts[i](sequences[i])
    for i in range(len(prompts)):
        engine.release(str(i))
    return [s[len(p) :][:length] for s, p in zip(sequences, prompts, strict=True)]
