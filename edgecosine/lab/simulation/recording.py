"""Records the texts and drafts of the zoo: `python -m edgecosine.lab.simulation.recording`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from edgecosine import zoo
from edgecosine.engine.base import DraftEngine, DraftWork, TargetEngine, VerifyWork, expect_verified
from edgecosine.engine.loading.load import load_drafter, load_target
from edgecosine.engine.options import LoadOptions
from edgecosine.lab.simulation.texts import NUM_PROMPT, RECORDED, Texts
from edgecosine.node.target.shared_noise import noise_of
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.messages import SharedNoise, pack_shares
from edgecosine.protocol.wire.tree import EMPTY_TREE

PROMPTS = 31
"""Number for each domain."""
ANSWER = 144
"""Tokens of each answer: 128, and those that drafts may look ahead."""
SEED = 1
"""Seed of the first prompt's noise; each further prompt has the next seed."""
_GUESSES = 4


def record(temperature: float) -> Texts:
    """Record the target's answers, and every drafter's drafts at every position; takes minutes.

    Above temperature 0 drafters sample with the target's noise, as in a cluster.
    """
    engine, loaded = load_target(LoadOptions(zoo.TARGET, threads=1))
    assert loaded.codec is not None
    prompts = [(d, text) for d, texts in zoo.prompts().items() for text in texts[:PROMPTS]]
    samplings = [Sampling(temperature=temperature, seed=SEED + n) for n in range(len(prompts))]
    texts = [
        _answer(engine, loaded.codec.encode(text), sampling)
        for (_, text), sampling in zip(prompts, samplings, strict=True)
    ]
    names = zoo.drafter_names()
    guesses = np.zeros((len(names), len(texts), ANSWER, _GUESSES), np.uint16)
    shares = np.zeros(guesses.shape, np.uint8)
    surprises = np.zeros(guesses.shape[:2], np.float32)
    for which, name in enumerate(names):
        drafter, _ = load_drafter(LoadOptions(name, threads=1))
        for number, (text, sampling) in enumerate(zip(texts, samplings, strict=True)):
            surprises[which, number] = _surprise(drafter, text[:NUM_PROMPT])
            for place in range(ANSWER):
                drafted = _guess(drafter, text[: NUM_PROMPT + place], noise_of(sampling))
                guesses[which, number, place] = drafted.tokens[:_GUESSES]
                packed = pack_shares(drafted.confidences[:_GUESSES])
                shares[which, number, place] = np.frombuffer(packed, np.uint8)
        sys.stderr.write(f"{name}: {len(texts)} texts\n")
    tokens = np.array(texts, dtype=np.uint16)
    domains = tuple(domain for domain, _ in prompts)
    return Texts(tokens, domains, names, guesses, shares, surprises, temperature)


def _answer(engine: TargetEngine, prompt: list[int], sampling: Sampling) -> list[int]:
    text = list(prompt)
    while len(text) < NUM_PROMPT + ANSWER:
        work = VerifyWork("record", text, NUM_PROMPT, EMPTY_TREE, sampling)
        [outcome] = engine.step([work]).outcomes
        if (verified := expect_verified(outcome)) is not None:
            text.append(verified.bonus)
    return text


class _Guesses:
    def __init__(self, tokens: Sequence[int], confidences: Sequence[float]) -> None:
        self.tokens, self.confidences = tokens, confidences


def _surprise(drafter: DraftEngine, prompt: Sequence[int]) -> float:
    """The drafter's negative log-likelihood of a prompt, in nats per token."""
    [drafted] = drafter.draft([DraftWork("surprise", tuple(prompt), 1, 1, SharedNoise())])
    drafter.release("surprise")
    return drafted.prompt_score.nll


def _guess(drafter: DraftEngine, tokens: Sequence[int], coupling: SharedNoise) -> _Guesses:
    """The drafter's guesses for the next token."""
    [drafted] = drafter.draft([DraftWork("record", tuple(tokens), 1, 1, coupling)])
    above = drafted.parents or range(-1, len(drafted.tokens) - 1)
    roots = [node for node, parent in enumerate(above) if parent == -1]
    return _Guesses([drafted.tokens[n] for n in roots], [drafted.confidences[n] for n in roots])


if __name__ == "__main__":
    for temperature, path in RECORDED.items():
        record(temperature).save(path)
