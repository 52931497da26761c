"""Drafts are the model's own continuations, in any batch and with any cached prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import pytest
import torch

from edgecosine.engine.attention import BatchRows
from edgecosine.engine.base import DraftResult, DraftWork
from edgecosine.engine.cpu.kernel_library import KernelsUnavailable, load_kernels
from edgecosine.engine.draft.draft_progress import PLAIN_NODES
from edgecosine.engine.draft.drafter import TransformerDrafter
from edgecosine.engine.draft.prompt_lookup import NgramDrafter
from edgecosine.engine.slot_model import SlotModel
from edgecosine.protocol.wire.messages import MAX_DRAFT_TOKENS, SharedNoise
from edgecosine.protocol.wire.prompt_score import MAX_SCORED_TOKENS, NO_PROMPT_SCORE, PromptScore
from edgecosine.protocol.wire.tree import EMPTY_TREE, ROOT, TokenTree, chain
from tests.engine.models import VOCABULARY, build, prompt_of

GREEDY = SharedNoise()
COUPLED = SharedNoise(temperature=0.9, seed=(5).to_bytes(8, "little"))


class CountingModel(SlotModel):
    """Counts forward passes; its logits are scaled for high confidences."""

    num_forward_passes = 0

    def forward(self, rows: BatchRows, keep: Sequence[int]) -> torch.Tensor:
        self.num_forward_passes += 1
        return 30 * super().forward(rows, keep)


def _model(slots: int) -> CountingModel:
    try:
        kernels = load_kernels()
    except KernelsUnavailable:
        kernels = None
    return CountingModel(build("llama"), slots=slots, slot_size=288, threads=1, kernels=kernels)


def _drafter(
    slots: int = 4, context: int = 120, model: CountingModel | None = None
) -> TransformerDrafter:
    model = model or _model(slots)
    return TransformerDrafter(model, slots=slots, max_context=context, chunk=16)


def _work(
    key: str,
    tokens: list[int],
    num_tokens: int,
    width: int = 1,
    ahead: TokenTree | None = None,
    noise: SharedNoise = GREEDY,
) -> DraftWork:
    return DraftWork(key, tokens, num_tokens, width, noise, ahead)


def _tree(proposal: DraftResult) -> TokenTree:
    size = len(proposal.tokens)
    return TokenTree(proposal.tokens, proposal.parents, proposal.confidences, (1,) * size)


def _trunk(proposal: DraftResult) -> list[int]:
    """The path of the most probable children."""
    tree, at, trunk = _tree(proposal), ROOT, list[int]()
    while children := [n for n, parent in enumerate(tree.parents) if parent == at]:
        at = max(children, key=lambda n: tree.confidences[n])
        trunk.append(tree.tokens[at])
    return trunk


def _bare(proposal: DraftResult) -> DraftResult:
    """The draft without its prompt score."""
    return replace(proposal, prompt_score=NO_PROMPT_SCORE, num_steps=0)


def _greedy(prompt: list[int], length: int) -> list[int]:
    tokens = torch.tensor([prompt])
    out = build("llama").generate(tokens, max_new_tokens=length, do_sample=False, eos_token_id=None)
    answer: list[int] = out[0, len(prompt) :].tolist()
    return answer


def _knows(proposal: DraftResult, tokens: Sequence[int]) -> int:
    """Number of the tokens that are a path of the draft."""
    tree, at = _tree(proposal), ROOT
    for depth, token in enumerate(tokens):
        child = tree.child(at, token)
        if child is None:
            return depth
        at = child
    return len(tokens)


def test_most_probable_path_is_the_models_greedy_continuation() -> None:
    prompt = prompt_of(30)
    [proposal] = _drafter().draft([_work("a", prompt, 8, width=3)])
    assert _trunk(proposal) == _greedy(prompt, 8)[: len(_trunk(proposal))]
    assert len(_trunk(proposal)) >= 4
    assert all(0 < c <= 1 for c in proposal.confidences)


def test_parents_come_first_and_answers_are_bounded() -> None:
    drafter = _drafter()
    [plain] = drafter.draft([_work("a", prompt_of(20), 8, width=8)])
    [ahead] = drafter.draft([_work("a", prompt_of(20), 8, width=8, ahead=EMPTY_TREE)])
    assert len(plain.tokens) <= PLAIN_NODES
    assert PLAIN_NODES < len(ahead.tokens) <= MAX_DRAFT_TOKENS
    assert all(parent < node for node, parent in enumerate(ahead.parents))
    path_probability = [0.0] * len(ahead.tokens)
    for node, parent in enumerate(ahead.parents):
        path_probability[node] = ahead.confidences[node] * (
            1.0 if parent == ROOT else path_probability[parent]
        )
    assert path_probability == sorted(path_probability, reverse=True)


@pytest.mark.parametrize("noise", [SharedNoise(), COUPLED], ids=["greedy", "coupled"])
def test_batch_and_history_change_nothing(noise: SharedNoise) -> None:
    prompts = [prompt_of(20 + i, seed=i) for i in range(4)]
    works = [_work(str(i), p, 3 + i, width=2, noise=noise) for i, p in enumerate(prompts)]
    fresh = [_drafter().draft([work])[0] for work in works]
    drafter = _drafter()
    drafter.draft([_work(str(i), [*p[:-4], 5, 6], 5) for i, p in enumerate(prompts)])
    assert list(map(_bare, drafter.draft(works))) == list(map(_bare, fresh))


def test_a_prefix_that_another_request_has_read_is_copied() -> None:
    system = prompt_of(64)
    first, second = ([*system, *prompt_of(3, seed=i)] for i in (1, 2))
    fresh = _drafter().draft([_work("b", second, 5, width=2)])
    model = _model(4)
    drafter = _drafter(model=model)
    drafter.draft([_work("a", first, 5, width=2)])
    before = model.num_forward_passes
    assert list(map(_bare, drafter.draft([_work("b", second, 5, width=2)]))) == [_bare(fresh[0])]
    assert model.num_forward_passes - before <= 1 + 5, "64 tokens are four chunks"
    again = drafter.draft([_work("a", first, 5, width=2)])
    assert list(map(_bare, again)) == list(
        map(_bare, _drafter().draft([_work("a", first, 5, width=2)]))
    )


@pytest.mark.parametrize("noise", [SharedNoise(), COUPLED], ids=["greedy", "coupled"])
def test_drafts_ahead_equal_those_of_a_fresh_drafter(noise: SharedNoise) -> None:
    prompt = prompt_of(24)
    known = _drafter()
    [ahead] = known.draft([_work("a", prompt, 12, 4, EMPTY_TREE, noise)])
    tree = _tree(ahead)
    deepest = max(range(len(tree)), key=lambda n: tree.depths[n])
    for end in range(1, tree.depths[deepest]):
        committed = [*prompt, *(tree.tokens[n] for n in tree.path(deepest)[:end])]
        [later] = known.draft([_work("a", committed, 4, noise=noise)])
        [fresh] = _drafter().draft([_work("a", committed, 4, noise=noise)])
        assert _knows(later, _trunk(fresh)) == len(_trunk(fresh))
        shared = {(t, c) for t, c in zip(fresh.tokens[:3], fresh.confidences[:3], strict=True)}
        assert shared <= set(zip(later.tokens, later.confidences, strict=True))


def test_verified_tokens_in_the_tree_need_no_forward_pass() -> None:
    prompt = prompt_of(24)
    model = _model(1)
    drafter = _drafter(1, model=model)
    [first] = drafter.draft([_work("a", prompt, 4)])
    tree = chain(tuple(_trunk(first)[:3]))
    [ahead] = drafter.draft([_work("a", prompt, 8, 6, ahead=tree)])
    continuation = _greedy(prompt, 6)
    assert _knows(ahead, continuation) == 6
    before = model.num_forward_passes
    [second] = drafter.draft([_work("a", [*prompt, *continuation[:4]], 2)])
    assert model.num_forward_passes == before
    assert _knows(second, continuation[4:]) == 2


def test_verified_tokens_outside_the_tree_discard_it() -> None:
    prompt = prompt_of(24)
    drafter = _drafter()
    drafter.draft([_work("a", prompt, 8, 4, ahead=EMPTY_TREE)])
    for other in ([*prompt, 3, 3, 3], [*prompt[:-1], 9], prompt[:-5]):
        [later] = drafter.draft([_work("a", other, 4)])
        [fresh] = _drafter().draft([_work("a", other, 4)])
        assert _bare(later) == _bare(fresh)


def test_nodes_of_other_drafters_are_read_and_continued() -> None:
    prompt = prompt_of(24)
    strange = (_greedy(prompt, 1)[0] + 1) % VOCABULARY
    tree = chain((strange, (strange + 7) % VOCABULARY))
    [ahead] = _drafter().draft([_work("a", prompt, 6, 4, ahead=tree)])
    expected = _greedy([*prompt, *tree.tokens], 2)
    assert _knows(ahead, [*tree.tokens, *expected]) == 4


@pytest.mark.parametrize("ahead", [None, EMPTY_TREE])
def test_interrupted_draft_continues_where_it_ended(ahead: TokenTree | None) -> None:
    work = _work("a", prompt_of(24), 6, 4, ahead=ahead)
    model = _model(1)
    drafter = _drafter(1, context=250, model=model)
    found = list[DraftResult]()
    while not found or not found[-1].is_complete:
        made = found[-1].num_steps if found else 0
        found += drafter.draft([replace(work, num_steps=made)], lambda _: True)
        assert model.num_forward_passes == len(found)
    undisturbed = _model(1)
    [whole] = _drafter(1, context=250, model=undisturbed).draft([work])
    assert replace(found[-1], prompt_score=whole.prompt_score) == whole
    score = reduce(PromptScore.joined, (each.prompt_score for each in found))
    assert score.top1_matches == whole.prompt_score.top1_matches
    assert score.nll == pytest.approx(whole.prompt_score.nll)
    assert len(found) == undisturbed.num_forward_passes


def test_call_is_asked_after_each_step_whether_complete_drafts_end_it() -> None:
    short, long = _work("a", prompt_of(24), 2), _work("b", prompt_of(24), 9)
    complete = list[int]()
    drafts = _drafter().draft([short, long], lambda count: complete.append(count) or count > 0)
    assert [each.is_complete for each in drafts] == [True, False]
    assert complete == [0] * (len(complete) - 1) + [1]


def test_other_noise_starts_a_new_tree() -> None:
    prompt = prompt_of(24)
    drafter = _drafter()
    drafter.draft([_work("a", prompt, 4, noise=COUPLED)])
    [proposal] = drafter.draft([_work("a", prompt, 4)])
    [fresh] = _drafter().draft([_work("a", prompt, 4)])
    assert _bare(proposal) == _bare(fresh)


def test_full_tree_is_not_explored_further() -> None:
    drafter = _drafter(1, context=120)
    prompt = prompt_of(24)
    for _ in range(4):
        [proposal] = drafter.draft([_work("a", prompt, 12, 8, ahead=EMPTY_TREE)])
    assert len(proposal.tokens) == MAX_DRAFT_TOKENS


def test_draft_ends_where_the_context_ends() -> None:
    [proposal] = _drafter(context=32).draft([_work("a", prompt_of(30), 8, width=4)])
    assert max(_tree(proposal).depths) == 2


def test_ngram_continues_the_last_repetition() -> None:
    drafter = NgramDrafter()
    [proposal] = drafter.draft([_work("a", [1, 2, 3, 4, 9, 1, 2], 3)])
    assert proposal.tokens == (3, 4, 9)
    [proposal] = drafter.draft([_work("a", [1, 2, 3, 4, 9, 1, 2, 7, 2], 2)])
    assert proposal.tokens == (7, 2)
    [proposal] = drafter.draft([_work("b", [1, 2, 3], 3)])
    assert proposal.tokens == ()


def test_prompt_score_compares_tokens_with_predictions() -> None:
    """The model's own text is all top-1 and has the lowest NLL; chunks change nothing."""
    prompt = prompt_of(20)
    own = [*prompt, *_greedy(prompt, 12)]
    score = _drafter().draft([_work("a", own, 2)])[0].prompt_score
    assert len(score.top1_matches) == len(own) - 1
    assert all(score.top1_matches[len(prompt) - 1 :])
    strange = [*prompt, *prompt_of(12, seed=9)]
    other = _drafter().draft([_work("a", strange, 2)])[0].prompt_score
    assert not all(other.top1_matches[len(prompt) - 1 :])
    assert other.nll > score.nll > 0


def test_prompt_score_covers_new_tokens_only() -> None:
    drafter, prompt = _drafter(), prompt_of(20)
    drafter.draft([_work("a", prompt, 2)])
    truth = _greedy(prompt, 8)
    # The first new token follows read ones; those behind a wrong draft token are read now.
    wrong = (truth[0] + 1) % VOCABULARY
    [score] = drafter.draft([_work("a", [*prompt, wrong, *truth[1:6]], 2)])
    assert len(score.prompt_score.top1_matches) == 5
    [again] = drafter.draft([_work("a", [*prompt, wrong, *truth[1:6]], 2)])
    assert again.prompt_score == NO_PROMPT_SCORE


def test_prompt_score_of_a_long_text_is_bounded() -> None:
    [score] = _drafter(context=250).draft([_work("a", prompt_of(200), 2)])
    assert len(score.prompt_score.top1_matches) == MAX_SCORED_TOKENS


@pytest.mark.parametrize("ahead", [None, EMPTY_TREE], ids=["waited for", "ahead"])
def test_prefix_beyond_the_context_gets_an_empty_draft(ahead: TokenTree | None) -> None:
    work = _work("a", prompt_of(30), 4)
    beyond = _work("b", (prompt_of(100) * 8)[:754], 4, ahead=ahead)
    [alone] = _drafter(context=64).draft([work])
    assert _drafter(context=64).draft([beyond, work]) == [DraftResult((), ()), alone]
    assert _drafter(context=64).draft([beyond]) == [DraftResult((), ())]


def test_no_token_is_drafted_beyond_the_context() -> None:
    [proposal] = _drafter(context=64).draft([_work("a", prompt_of(64), 8)])
    assert proposal.tokens
    assert set(_tree(proposal).depths) == {1}
