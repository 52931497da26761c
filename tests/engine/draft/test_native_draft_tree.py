"""The kernels' step of drafting is the same as Python's, to the last bit of every confidence."""

from __future__ import annotations

import math

import pytest
import torch

from edgecosine.engine.base import DraftResult, DraftWork
from edgecosine.engine.cpu.kernel_library import KernelsUnavailable, load_kernels
from edgecosine.engine.cpu.native_llama import NativeLlama
from edgecosine.engine.draft.draft_sampling import DraftTokens
from edgecosine.engine.draft.draft_tree import CAPACITY, DraftTree
from edgecosine.engine.draft.drafter import TREE_ROOM, TransformerDrafter
from edgecosine.protocol.wire.messages import SharedNoise
from edgecosine.protocol.wire.tree import EMPTY_TREE, ROOT, TokenTree, chain
from tests.engine.models import VOCABULARY, build, cut_head, prompt_of

COUPLED = SharedNoise(temperature=0.9, seed=(5).to_bytes(8, "little"))
CELLS = 64 + TREE_ROOM


SHORTLIST = torch.arange(1, VOCABULARY, 3)


def drafter(*, is_native: bool, shortlist: torch.Tensor | None = None) -> TransformerDrafter:
    try:
        kernels = load_kernels()
    except KernelsUnavailable as why:
        pytest.skip(str(why))
    modules = build("llama")
    if shortlist is not None:
        cut_head(modules, shortlist)
    model = NativeLlama(modules, slots=4, cells=CELLS, threads=1, kernels=kernels)
    made = TransformerDrafter(model, slots=4, max_context=64, chunk=16, kernels=kernels)
    assert made._fused is not None
    if not is_native:
        made._fused = None
    return made


def tree_of(proposal: DraftResult, size: int) -> TokenTree:
    """The most probable nodes of it."""
    tokens, parents = proposal.tokens[:size], proposal.parents[:size]
    return TokenTree(tokens, parents, proposal.confidences[:size], (1,) * len(tokens))


def shares(tree: TokenTree) -> tuple[float, ...]:
    """Every other outcome is somebody else's."""
    return tuple(1.0 if n % 2 else 0.25 for n in range(1 + len(tree)))


def talk(made: TransformerDrafter, coupling: SharedNoise) -> list[DraftResult]:
    """Rounds of four requests, one after the other and together: drafts, drafts ahead over trees of
    their own and of others, verdicts that were foreseen and that were not, the end of the room."""
    said: list[DraftResult] = []
    prompts = {str(n): list(prompt_of(20 + n, seed=n)) for n in range(4)}
    for number in range(6):
        works = [
            DraftWork(key, tuple(p), 3 + number, 1 + number % 3, coupling)
            for key, p in prompts.items()
        ]
        drafts = made.draft(works)
        strange = chain((number + 7, number + 8))
        trees = [tree_of(d, 9) if number % 2 else strange for d in drafts]
        ahead = [
            DraftWork(key, tuple(p), 12, 6, coupling, tree, shares(tree))
            for (key, p), tree in zip(prompts.items(), trees, strict=True)
        ]
        said += [*drafts, *made.draft(ahead[:1]), *made.draft(ahead[1:])]
        for key, tree in zip(prompts, trees, strict=True):
            prompts[key] += tree.tokens[:1] if number != 3 else (VOCABULARY - 1,)
    deep = [DraftWork("0", tuple(prompts["0"]), 40, 8, coupling, EMPTY_TREE) for _ in range(4)]
    return [*said, *(made.draft([work])[0] for work in deep)]


@pytest.mark.parametrize("coupling", [SharedNoise(), COUPLED], ids=["greedy", "coupled"])
def test_kernels_and_python_grow_the_same(coupling: SharedNoise) -> None:
    native, plain = drafter(is_native=True), drafter(is_native=False)
    assert talk(native, coupling) == talk(plain, coupling)


@pytest.mark.parametrize("coupling", [SharedNoise(), COUPLED], ids=["greedy", "coupled"])
def test_kernels_and_python_grow_the_same_from_a_shortlist(coupling: SharedNoise) -> None:
    native = talk(drafter(is_native=True, shortlist=SHORTLIST), coupling)
    assert native == talk(drafter(is_native=False, shortlist=SHORTLIST), coupling)
    guessed = {token for proposal in native for token in proposal.tokens}
    assert guessed <= set(SHORTLIST.tolist()) | set(range(7, 14))
    assert all(math.isfinite(proposal.hindsight.nll) for proposal in native)


def test_draws_that_are_cut_are_left_to_python() -> None:
    cut = SharedNoise(temperature=0.9, top_k=5, seed=bytes(8))
    assert talk(drafter(is_native=True), cut) == talk(drafter(is_native=False), cut)


def test_full_growth_takes_nothing_more() -> None:
    growth = DraftTree(3)
    growth.add_guesses(ROOT, DraftTokens(list(range(CAPACITY + 9)), [0.1] * (CAPACITY + 9)))
    assert len(growth) == CAPACITY
    assert growth.lay(chain((CAPACITY + 20,))) == []
    growth.add_guesses(0, DraftTokens([1], [0.5]))
    assert len(growth) == CAPACITY
