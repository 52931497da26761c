"""Drafts are the model's own continuations, in any company, whatever was cached before."""

from __future__ import annotations

import torch

from edgecosine.engine.base import DraftWork
from edgecosine.engine.drafter import TransformerDrafter
from edgecosine.engine.model import SlotModel
from edgecosine.engine.native import KernelsUnavailable, load_kernels
from edgecosine.engine.ngram import NgramDrafter
from edgecosine.protocol.messages import Coupling
from tests.engine.models import build, prompt_of


def _drafter(slots: int = 4, context: int = 120) -> TransformerDrafter:
    try:
        kernels = load_kernels()
    except KernelsUnavailable:
        kernels = None
    model = SlotModel(build("llama"), slots=slots, cells=128, threads=1, kernels=kernels)
    return TransformerDrafter(model, slots=slots, max_context=context, chunk=16)


def _work(key: str, tokens: list[int], num_tokens: int, width: int = 1) -> DraftWork:
    return DraftWork(key, tokens, num_tokens, width, Coupling())


def test_chain_is_the_models_greedy_continuation() -> None:
    prompt = prompt_of(30)
    reference = (
        build("llama")
        .generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None)[
            0, 30:
        ]
        .tolist()
    )
    [proposal] = _drafter().draft([_work("a", prompt, 8)])
    assert list(proposal.tokens) == reference
    assert all(0 < c <= 1 for c in proposal.confidences)


def test_batch_and_history_change_nothing() -> None:
    prompts = [prompt_of(20 + i, seed=i) for i in range(4)]
    fresh = [_drafter().draft([_work("x", p, 3 + i)])[0] for i, p in enumerate(prompts)]
    drafter = _drafter()
    drafter.draft([_work(str(i), [*p[:-4], 5, 6], 5) for i, p in enumerate(prompts)])
    again = drafter.draft([_work(str(i), p, 3 + i) for i, p in enumerate(prompts)])
    assert [p.tokens for p in again] == [p.tokens for p in fresh]


def test_wide_draft_is_a_trunk_with_siblings() -> None:
    prompt = prompt_of(25)
    drafter = _drafter()
    [chain] = drafter.draft([_work("a", prompt, 4)])
    [tree] = drafter.draft([_work("a", prompt, 4, width=3)])
    assert tree.tokens[::3] == chain.tokens
    assert tree.parents == (-1, -1, -1, 0, 0, 0, 3, 3, 3, 6, 6, 6)


def test_draft_ends_where_the_context_ends() -> None:
    [proposal] = _drafter(context=32).draft([_work("a", prompt_of(30), 8)])
    assert len(proposal.tokens) == 2


def test_ngram_continues_the_last_repetition() -> None:
    drafter = NgramDrafter()
    [proposal] = drafter.draft([_work("a", [1, 2, 3, 4, 9, 1, 2], 3)])
    assert proposal.tokens == (3, 4, 9)
    [proposal] = drafter.draft([_work("a", [1, 2, 3, 4, 9, 1, 2, 7, 2], 2)])
    assert proposal.tokens == (7, 2)
    [proposal] = drafter.draft([_work("b", [1, 2, 3], 3)])
    assert proposal.tokens == ()
