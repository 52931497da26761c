"""Log-probabilities and min_tokens do not depend on drafts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from edgecosine.engine.base import Prefilling, VerifyWork
from edgecosine.engine.cpu.kernel_library import KernelsUnavailable, load_kernels
from edgecosine.engine.cpu.native_llama import NativeLlama
from edgecosine.engine.sampling import logprobs_of
from edgecosine.engine.slot_model import SlotModel
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.protocol.api.request import Logprobs, Sampling
from edgecosine.protocol.wire.tree import EMPTY_TREE, TokenTree
from tests.engine.decoding import Drafts, nothing, random_trees
from tests.engine.models import VOCABULARY, build, prompt_of

LENGTH = 40
PROMPT = prompt_of(21)
MANNERS = [
    Sampling(),
    Sampling(temperature=0.8, seed=3),
    Sampling(temperature=1.2, top_k=20, top_p=0.9, min_p=0.02, seed=5),
    Sampling(temperature=0.7, presence_penalty=0.5, frequency_penalty=0.3, seed=6),
    Sampling(repetition_penalty=1.3, logit_bias=((7, 2.0),)),
]


def _has_kernels() -> bool:
    try:
        load_kernels()
    except KernelsUnavailable:
        return False
    return True


needs_kernels = pytest.mark.skipif(not _has_kernels(), reason="no C++ compiler for the kernels")


def engine(eos_tokens: Sequence[int] = (), kind: Any = NativeLlama) -> TransformerTarget:
    model = kind(build("llama"), slots=3, slot_size=256, threads=1, kernels=load_kernels())
    return TransformerTarget(model, slots=3, max_context=200, chunk=7, eos_tokens=eos_tokens)


def decode(
    target: TransformerTarget,
    drafts: Drafts,
    how: Sampling,
    top_logprobs: int | None,
) -> tuple[list[int], list[Logprobs], int]:
    """An answer, the log-probabilities of its tokens, and the number of accepted draft tokens."""
    sequence, logprobs, accepted, tree = list(PROMPT), list[Logprobs](), 0, EMPTY_TREE
    while len(sequence) < len(PROMPT) + LENGTH:
        work = VerifyWork("key", tuple(sequence), len(PROMPT), tree, how, top_logprobs)
        [outcome] = target.step([work]).outcomes
        if isinstance(outcome, Prefilling):
            continue
        sequence += [*(tree.tokens[node] for node in outcome.path), outcome.bonus]
        logprobs += outcome.logprobs
        accepted += len(outcome.path)
        tree = drafts(sequence)
    target.release("key")
    return sequence[len(PROMPT) :][:LENGTH], logprobs[:LENGTH], accepted


def hostile(truth: Sequence[int]) -> Drafts:
    """Every token that is not the target's next one, side by side."""

    def drafts(sequence: list[int]) -> TokenTree:
        right = truth[len(sequence)] if len(sequence) < len(truth) else -1
        tokens = tuple(token for token in range(40) if token != right)
        size = len(tokens)
        return TokenTree(tokens, (-1,) * size, (1.0,) * size, (1,) * size)

    return drafts


KINDS_OF_DRAFTS: dict[str, Callable[[Sequence[int]], Drafts]] = {
    "trees": lambda truth: random_trees(truth, VOCABULARY, seed=1),
    "good": lambda truth: lambda sequence: chain(truth[len(sequence) : len(sequence) + 6]),
    "bad": lambda truth: random_trees((), VOCABULARY, seed=2),
    "hostile": hostile,
}


def chain(tokens: Sequence[int]) -> TokenTree:
    """A path of tokens."""
    size = len(tokens)
    return TokenTree(tuple(tokens), tuple(range(-1, size - 1)), (1.0,) * size, (1,) * size)


@needs_kernels
@pytest.mark.parametrize("kind", [NativeLlama, SlotModel])
@pytest.mark.parametrize("name", KINDS_OF_DRAFTS)
def test_log_probabilities_are_equal_to_the_bit_under_any_drafts(name: str, kind: Any) -> None:
    target = engine(kind=kind)
    for how in MANNERS:
        answer, reported, _ = decode(target, nothing, how, 5)
        drafts = KINDS_OF_DRAFTS[name]([*PROMPT, *answer])
        again, reported_again, accepted = decode(target, drafts, how, 5)
        assert again == answer
        assert reported_again == reported
        assert accepted > 25 if name == "good" else accepted < LENGTH


@needs_kernels
@pytest.mark.parametrize("how", MANNERS, ids=str)
def test_log_probabilities_are_those_of_the_model_before_anything_is_changed(how: Sampling) -> None:
    answer, reported, _ = decode(engine(), nothing, how, 4)
    with torch.inference_mode():
        logits = build("llama")(torch.tensor([[*PROMPT, *answer]])).logits[0]
    rows = torch.log_softmax(logits[len(PROMPT) - 1 : -1], -1)
    for row, token, each in zip(rows, answer, reported, strict=True):
        assert each.drawn == pytest.approx(float(row[token]), abs=1e-3)
        values = [logprob for _, logprob in each.top]
        assert values == pytest.approx(row.topk(4).values.tolist(), abs=1e-3)
        assert values == pytest.approx([float(row[other]) for other, _ in each.top], abs=1e-3)
    if how == Sampling():
        assert [each.top[0][0] for each in reported] == answer


@needs_kernels
def test_answer_is_the_same_without_log_probabilities() -> None:
    target = engine()
    for how in MANNERS:
        answer, reported, _ = decode(target, nothing, how, None)
        assert reported == []
        asked, reported, _ = decode(target, nothing, how, 0)
        assert asked == answer
        assert [each.top for each in reported] == [()] * LENGTH


def test_more_alternatives_than_tokens_return_the_whole_vocabulary() -> None:
    reported = logprobs_of(torch.tensor([0.0, 1.0, -1.0]), 2, 20)
    assert [token for token, _ in reported.top] == [1, 0, 2]
    assert reported.drawn == reported.top[2][1]
    assert sum(2.718281828**logprob for _, logprob in reported.top) == pytest.approx(1.0)


@needs_kernels
@pytest.mark.parametrize("name", ["nothing", *KINDS_OF_DRAFTS])
@pytest.mark.parametrize("as_stop", [False, True])
def test_min_tokens_bans_end_tokens_as_in_transformers(name: str, as_stop: bool) -> None:
    free, _, _ = decode(engine(), nothing, Sampling(), None)
    end = free[4]
    model = build("llama")
    generated = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=LENGTH, do_sample=False,
        min_new_tokens=12, eos_token_id=end, pad_token_id=0,
    )[0, len(PROMPT) :].tolist()  # fmt: skip
    target = engine([] if as_stop else [end])
    how = Sampling(min_tokens=12, stop_token_ids=(end,) if as_stop else ())
    make = KINDS_OF_DRAFTS.get(name, lambda _: nothing)
    # Drafts that would have ended at once, as drafters know nothing of a time before the end.
    answer, _, _ = decode(target, make([*PROMPT, *free]), how, None)
    assert end not in answer[:12]
    assert answer[: len(generated)] == generated


@needs_kernels
@pytest.mark.parametrize("how", MANNERS, ids=str)
def test_ban_holds_under_any_sampling_and_drafts(how: Sampling) -> None:
    free, _, _ = decode(engine(), nothing, how, None)
    ends = sorted({*free[:10]})
    banned = replace(how, min_tokens=20, logit_bias=((ends[0], 100.0),))
    target = engine(ends)
    answer, reported, _ = decode(target, nothing, banned, 2)
    assert not {*ends} & {*answer[:20]}
    assert answer[20] == ends[0]
    for make in KINDS_OF_DRAFTS.values():
        for truth in (free, answer):
            again, reported_again, _ = decode(target, make([*PROMPT, *truth]), banned, 2)
            assert (again, reported_again) == (answer, reported)


def score(
    target: TransformerTarget, sequence: Sequence[int], num_prompt: int, *, beside: bool = False
) -> tuple[Logprobs, ...]:
    """The log-probabilities of a prompt, which more tokens may follow."""
    works = [VerifyWork("key", tuple(sequence), num_prompt, EMPTY_TREE, Sampling(), 4, True)]
    if beside:
        works.append(VerifyWork("beside", tuple(PROMPT[3:]), 9, EMPTY_TREE, Sampling()))
    while True:
        outcome = target.step(works).outcomes[0]
        if not isinstance(outcome, Prefilling):
            target.release("key")
            return outcome.prompt_logprobs


@needs_kernels
@pytest.mark.parametrize("kind", [NativeLlama, SlotModel])
def test_prompt_is_scored_as_if_it_had_been_generated(kind: Any) -> None:
    target = engine(kind=kind)
    answer, reported, _ = decode(target, nothing, Sampling(), 4)
    prompt = [*PROMPT, *answer]
    scored = score(target, prompt, len(prompt))
    assert len(scored) == len(prompt) - 1
    assert [*scored[len(PROMPT) - 1 :]] == reported
    # Neither a cached prefix, nor other requests, nor an answer that is resumed change a score.
    assert score(target, prompt, len(prompt)) == scored
    assert score(engine(kind=kind), prompt, len(prompt), beside=True) == scored
    assert score(engine(kind=kind), prompt, len(PROMPT)) == scored[: len(PROMPT) - 1]
    assert score(target, prompt[:1], 1) == ()
