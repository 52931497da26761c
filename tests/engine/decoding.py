"""Decodes a sequence with an engine under drafts of any quality."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from edgecosine.engine.base import Prefilling, VerificationResult, VerifyWork
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.tree import EMPTY_TREE, ROOT, TokenTree

Drafts = Callable[[list[int]], TokenTree]


def nothing(_: list[int]) -> TokenTree:
    """Plain decoding."""
    return EMPTY_TREE


def random_trees(truth: Sequence[int], vocabulary: int, seed: int, most: int = 12) -> Drafts:
    """Trees of random shape whose nodes are often right, often wrong."""
    chance = random.Random(seed)

    def drafts(sequence: list[int]) -> TokenTree:
        tokens: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        for node in range(chance.randrange(most)):
            parent = chance.choice([ROOT, *range(node), node - 1])
            depth = 0 if parent == ROOT else depths[parent] + 1
            at = len(sequence) + depth
            is_good = at < len(truth) and chance.random() < 0.7
            token = truth[at] if is_good else chance.randrange(vocabulary)
            if (parent, token) in zip(parents, tokens, strict=True):
                parent, token = (node - 1), (token + 1) % vocabulary
                depth = 0 if parent == ROOT else depths[parent] + 1
            if (parent, token) in zip(parents, tokens, strict=True):
                break
            tokens.append(token)
            parents.append(parent)
            depths.append(depth)
        size = len(tokens)
        return TokenTree(tuple(tokens), tuple(parents), (1.0,) * size, (1,) * size)

    return drafts


def decode(
    engine: TransformerTarget,
    prompts: Sequence[list[int]],
    length: int,
    drafts: Sequence[Drafts],
    sampling: Sequence[Sampling] | None = None,
) -> tuple[list[list[int]], int]:
    """Answers of `length` tokens for all prompts, batched; number of accepted tokens."""
    sampling = sampling or [Sampling()] * len(prompts)
    sequences = [list(prompt) for prompt in prompts]
    trees = [EMPTY_TREE] * len(prompts)
    accepted = 0
    while True:
        todo = [
            i for i, (s, p) in enumerate(zip(sequences, prompts, strict=True))
            if len(s) < len(p) + length
        ]  # fmt: skip
        if not todo:
            break
        works = [
            VerifyWork(str(i), tuple(sequences[i]), len(prompts[i]), trees[i], sampling[i])
            for i in todo
        ]
        for i, outcome in zip(todo, engine.step(works).outcomes, strict=True):
            if isinstance(outcome, Prefilling):
                continue
            assert isinstance(outcome, VerificationResult)
            accepted += len(outcome.path)
            sequences[i] += [*(trees[i].tokens[n] for n in outcome.path), outcome.bonus]
            trees[i] = drafts[i](sequences[i])
    for i in range(len(prompts)):
        engine.release(str(i))
    answers = [s[len(p) :][:length] for s, p in zip(sequences, prompts, strict=True)]
    return answers, accepted
