"""Draft steps of the kernels and of Python are equal, to the last bit of every confidence."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from edgecosine.engine.base import DraftResult, DraftWork
from edgecosine.engine.cpu.kernel_library import KernelsUnavailable, load_kernels
from edgecosine.engine.cpu.native_llama import NativeLlama
from edgecosine.engine.draft.draft_progress import TREE_ROOM
from edgecosine.engine.draft.draft_sampling import DraftTokens
from edgecosine.engine.draft.draft_tree import TREE_CAPACITY, DraftTree
from edgecosine.engine.draft.drafter import TransformerDrafter
from edgecosine.protocol.wire.messages import SharedNoise
from edgecosine.protocol.wire.tree import EMPTY_TREE, ROOT, TokenTree, chain
from tests.engine.models import VOCABULARY, build, cut_head, prompt_of

COUPLED = SharedNoise(temperature=0.9, seed=(5).to_bytes(8, "little"))
SLOT_SIZE = 64 + TREE_ROOM


SHORTLIST = torch.arange(1, VOCABULARY, 3)


def drafter(*, is_native: bool, shortlist: torch.Tensor | None = None) -> TransformerDrafter:
    try:
        kernels = load_kernels()
    except KernelsUnavailable as why:
        pytest.skip(str(why))
    modules = build("llama")
    if shortlist is not None:
        cut_head(modules, shortlist)
    model = NativeLlama(modules, slots=4, slot_size=SLOT_SIZE, threads=1, kernels=kernels)
    made = TransformerDrafter(model, slots=4, max_context=64, chunk=16, kernels=kernels)
    assert made._fused is not None
    if not is_native:
        made._fused = None
    return made


def tree_of(proposal: DraftResult, size: int) -> TokenTree:
    """The `size` most probable nodes of a draft."""
    tokens, parents = proposal.tokens[:size], proposal.parents[:size]
    return TokenTree(tokens, parents, proposal.confidences[:size], (1,) * len(tokens))


def shares(tree: TokenTree) -> tuple[float, ...]:
    """Lower weights for every other node."""
    return tuple(1.0 if n % 2 else 0.25 for n in range(1 + len(tree)))


def talk(made: TransformerDrafter, noise: SharedNoise) -> list[DraftResult]:
    """Rounds of four requests, single and batched: drafts, drafts ahead of own and other trees,
    accepted and rejected tokens, full trees."""
    results: list[DraftResult] = []
    prompts = {str(n): list(prompt_of(20 + n, seed=n)) for n in range(4)}
    for number in range(6):
        works = [
            DraftWork(key, tuple(p), 3 + number, 1 + number % 3, noise)
            for key, p in prompts.items()
        ]
        drafts = made.draft(works)
        strange = chain((number + 7, number + 8))
        trees = [tree_of(d, 9) if number % 2 else strange for d in drafts]
        ahead = [
            DraftWork(key, tuple(p), 12, 6, noise, tree, shares(tree))
            for (key, p), tree in zip(prompts.items(), trees, strict=True)
        ]
        results += [*drafts, *made.draft(ahead[:1]), *made.draft(ahead[1:])]
        for key, tree in zip(prompts, trees, strict=True):
            prompts[key] += tree.tokens[:1] if number != 3 else (VOCABULARY - 1,)
    deep = [DraftWork("0", tuple(prompts["0"]), 40, 8, noise, EMPTY_TREE) for _ in range(4)]
    return [*results, *(made.draft([work])[0] for work in deep)]


def assert_equal(found: list[DraftResult], expected: list[DraftResult]) -> None:
    """Equal drafts; torch and the kernels add logarithms in other orders."""
    for one, other in zip(found, expected, strict=True):
        nll = pytest.approx(other.prompt_score.nll, abs=1e-5)
        assert one.prompt_score.nll == nll
        assert replace(one, prompt_score=replace(one.prompt_score, nll=0.0)) == replace(
            other, prompt_score=replace(other.prompt_score, nll=0.0)
        )


@pytest.mark.parametrize("noise", [SharedNoise(), COUPLED], ids=["greedy", "coupled"])
def test_kernels_and_python_draft_equal_trees(noise: SharedNoise) -> None:
    native = talk(drafter(is_native=True), noise)
    assert_equal(native, talk(drafter(is_native=False), noise))
    assert any(draft.prompt_score.top1_matches for draft in native)


@pytest.mark.parametrize("noise", [SharedNoise(), COUPLED], ids=["greedy", "coupled"])
def test_kernels_and_python_draft_equal_trees_from_a_shortlist(noise: SharedNoise) -> None:
    native = talk(drafter(is_native=True, shortlist=SHORTLIST), noise)
    assert_equal(native, talk(drafter(is_native=False, shortlist=SHORTLIST), noise))
    drafted = {token for proposal in native for token in proposal.tokens}
    assert drafted <= set(SHORTLIST.tolist()) | set(range(7, 14))
    assert all(math.isfinite(proposal.prompt_score.nll) for proposal in native)


def test_truncated_sampling_is_left_to_python() -> None:
    cut = SharedNoise(temperature=0.9, top_k=5, seed=bytes(8))
    assert talk(drafter(is_native=True), cut) == talk(drafter(is_native=False), cut)


def test_full_tree_accepts_no_more_nodes() -> None:
    tree = DraftTree(3)
    tree.add_children(
        ROOT, DraftTokens(list(range(TREE_CAPACITY + 9)), [0.1] * (TREE_CAPACITY + 9))
    )
    assert len(tree) == TREE_CAPACITY
    assert tree.seed_with(chain((TREE_CAPACITY + 20,))) == []
    tree.add_children(0, DraftTokens([1], [0.5]))
    assert len(tree) == TREE_CAPACITY
