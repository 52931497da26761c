"""Above temperature 0 tokens follow the target's own distribution, with and without trees."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import torch

from edgecosine.engine.base import VerificationResult, VerifyWork
from edgecosine.engine.cpu.kernel_library import Kernels, KernelsUnavailable, load_kernels
from edgecosine.engine.slot_model import SlotModel
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.tree import ROOT, TokenTree
from tests.engine.models import VOCABULARY, build, prompt_of

DRAWS = 2400
SESSIONS = 48
PROMPT, ANSWER = prompt_of(9), prompt_of(4, seed=3) * 2

HOWS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.6),
    Sampling(temperature=1.0, top_k=12),
    Sampling(temperature=1.0, top_p=0.7),
    Sampling(temperature=1.2, min_p=0.05),
    Sampling(temperature=1.0, presence_penalty=1.5, frequency_penalty=0.8),
    Sampling(temperature=1.0, repetition_penalty=1.8),
    Sampling(temperature=0.9, logit_bias=((7, 4.0), (9, -3.0))),
    Sampling(temperature=0.8, top_k=60, top_p=0.9, min_p=0.01, presence_penalty=0.5),
]


def _distribution(answer: list[int], how: Sampling) -> torch.Tensor:
    """Probabilities [vocabulary] of the token after prompt and `answer`, step by step from
    transformers' logits."""
    with torch.no_grad():
        row = MODEL(torch.tensor([PROMPT + answer])).logits[0, -1]
    logits = row.double()
    for token in {*PROMPT, *answer}:
        value = float(logits[token])
        penalty = how.repetition_penalty
        logits[token] = value / penalty if value > 0 else value * penalty
    for token, count in Counter(answer).items():
        logits[token] -= how.presence_penalty + how.frequency_penalty * count
    for token, bias in how.logit_bias:
        logits[token] += bias
    probabilities = torch.softmax(logits / how.temperature, 0)
    order = torch.argsort(probabilities, descending=True).tolist()
    if how.top_k:
        probabilities[order[how.top_k :]] = 0
    probabilities /= probabilities.sum()
    mass, nucleus = 0.0, list[int]()
    for token in order:
        if mass < how.top_p:
            nucleus.append(token)
            mass += float(probabilities[token])
    cut = torch.zeros_like(probabilities)
    cut[nucleus] = probabilities[nucleus]
    cut[cut < how.min_p * cut.max()] = 0
    return cut / cut.sum()


def _assert_follows(found: list[int], expected: torch.Tensor) -> None:
    """Chi-square; tokens with an expected count below five share one bin."""
    counts = torch.bincount(torch.tensor(found), minlength=len(expected)).double()
    assert counts[expected == 0].sum() == 0
    hopes = expected * len(found)
    is_rare = hopes < 5
    bins = [(counts[~is_rare], hopes[~is_rare])]
    if hopes[is_rare].sum() >= 5:
        bins.append((counts[is_rare].sum()[None], hopes[is_rare].sum()[None]))
    seen, hoped = (torch.cat(parts) for parts in zip(*bins, strict=True))
    chi_square = float(((seen - hoped) ** 2 / hoped).sum())
    freedom = len(seen) - 1
    assert freedom >= 2
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom) + 4


def _tree(chance: random.Random, likely: list[int]) -> TokenTree:
    """Likely and unlikely first tokens, each with a few children: what biased acceptance would
    favour."""
    firsts = dict.fromkeys([*likely, *chance.sample(range(VOCABULARY), 3)])
    order = chance.sample(list(firsts), len(firsts))
    nodes = [(ROOT, token) for token in order]
    for parent in range(len(order)):
        nodes += [(parent, token) for token in chance.sample(range(VOCABULARY), 2)]
    parents, tokens = zip(*nodes, strict=True)
    return TokenTree(tokens, parents, (1.0,) * len(nodes), (1,) * len(nodes))


def _kernels() -> Kernels | None:
    try:
        return load_kernels()
    except KernelsUnavailable:
        return None


MODEL = build("llama", layers=1)
for parameter in MODEL.lm_head.parameters():
    parameter.data *= 2.0


def _name(how: Sampling) -> str:
    return ",".join(
        f"{f.name}={getattr(how, f.name)}" for f in fields(how) if getattr(how, f.name) != f.default
    )


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformerTarget]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # draws over small vocabularies only get slower by more
    built = build("llama", layers=1)
    built.load_state_dict(MODEL.state_dict())
    model = SlotModel(built, slots=SESSIONS, slot_size=128, threads=1, kernels=_kernels())
    yield TransformerTarget(model, slots=SESSIONS, max_context=64)
    torch.set_num_threads(before)


@pytest.mark.parametrize("how", HOWS, ids=_name)
def test_first_tokens_follow_the_targets_own_probabilities(
    engine: TransformerTarget, how: Sampling
) -> None:
    first = _distribution(ANSWER, how)
    likely = torch.argsort(first, descending=True)[:3].tolist()
    chance, tokens = random.Random(str(how)), (*PROMPT, *ANSWER)
    firsts, seconds = list[int](), list[int]()
    for start in range(0, DRAWS, SESSIONS):
        works = [
            VerifyWork(
                str(key), tokens, len(PROMPT), _tree(chance, likely), replace(how, seed=start + key)
            )
            for key in range(SESSIONS)
        ]
        engine.step(works[:1])  # sessions that begin together would wait for its prompt
        for work, outcome in zip(works, engine.step(works).outcomes, strict=True):
            assert isinstance(outcome, VerificationResult)
            answer = [*(work.tree.tokens[node] for node in outcome.path), outcome.bonus]
            firsts.append(answer[0])
            if answer[0] == likely[0]:
                seconds.append(answer[1])
    _assert_follows(firsts, first)
    # The second token was drawn at a node of the tree.
    assert len(seconds) > 100
    _assert_follows(seconds, _distribution([*ANSWER, likely[0]], how))
