"""The text is the target's own for all drafts, batches, caches and families."""

from __future__ import annotations

import pytest
import torch

from edgecosine.engine.base import VerificationResult, VerifyWork
from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.cpu.kernel_library import Kernels, KernelsUnavailable, load_kernels
from edgecosine.engine.cpu.native_llama import NativeLlama, can_fuse
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.slot_model import SlotModel
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.tree import EMPTY_TREE
from tests.engine.decoding import decode, nothing, random_trees
from tests.engine.models import FAMILIES, VOCABULARY, build, prompt_of


def _kernels() -> Kernels | None:
    try:
        return load_kernels()
    except KernelsUnavailable:
        return None


needs_kernels = pytest.mark.skipif(_kernels() is None, reason="no C++ compiler for the kernels")


def _engine(
    family: str,
    *,
    slots: int = 4,
    chunk: int = 16,
    way: str = "layers",
    dtype: torch.dtype = torch.float32,
    cells: torch.dtype | None = None,
) -> TransformerTarget:
    kernels, built = (None if way == "plain" else _kernels()), build(family, dtype=dtype)
    if way == "fused":
        assert kernels is not None
        assert can_fuse(built)
        model: ForwardModel = NativeLlama(
            built, slots=slots, slot_size=256, threads=1, kernels=kernels, cells=cells
        )
    else:
        model = SlotModel(
            built, slots=slots, slot_size=256, threads=1, kernels=kernels, cells=cells
        )
    return TransformerTarget(model, slots=slots, max_context=200, chunk=chunk)


WAYS = [
    *((family, way) for family in FAMILIES for way in ("layers", "plain")),
    *((family, "fused") for family in ("llama", "qwen2", "qwen3", "mistral with a window")),
]


@pytest.mark.parametrize(("family", "way"), WAYS)
def test_answer_equals_transformers_generate(family: str, way: str) -> None:
    if way != "plain" and _kernels() is None:
        pytest.skip("no C++ compiler for the kernels")
    prompt = prompt_of(37)
    reference = (
        build(family)
        .generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False, eos_token_id=None)[
            0, 37:
        ]
        .tolist()
    )
    engine = _engine(family, way=way)
    alone, _ = decode(engine, [prompt], 30, [nothing])
    assert alone == [reference]
    drafts = random_trees(prompt + reference, VOCABULARY, seed=1)
    speculated, accepted = decode(engine, [prompt], 30, [drafts])
    assert speculated == [reference]
    assert accepted > 5


@needs_kernels
@pytest.mark.parametrize(
    ("way", "dtype"),
    [
        ("layers", torch.float32),
        ("layers", torch.bfloat16),
        ("fused", torch.float32),
        ("fused", torch.bfloat16),
    ],
    ids=str,
)
def test_answers_do_not_depend_on_batch_slot_or_tree(way: str, dtype: torch.dtype) -> None:
    prompts = [prompt_of(length, seed=length) for length in (5, 40, 23, 61, 12, 33)]
    sampling = [
        Sampling(),
        Sampling(temperature=0.8, seed=3),
        Sampling(temperature=1.0, top_p=0.9, seed=4),
        Sampling(temperature=1.2, top_k=20, min_p=0.02, seed=5),
        Sampling(temperature=0.7, presence_penalty=0.5, frequency_penalty=0.3, seed=6),
        Sampling(repetition_penalty=1.3, logit_bias=((7, 2.0),)),
    ]
    plain = _engine("llama", way=way, dtype=dtype)
    truth = [
        decode(plain, [prompt], 40, [nothing], [how])[0][0]
        for prompt, how in zip(prompts, sampling, strict=True)
    ]
    engine = _engine("llama", slots=6, chunk=7, way=way, dtype=dtype)
    drafts = [
        random_trees(prompt + answer, VOCABULARY, seed=i)
        for i, (prompt, answer) in enumerate(zip(prompts, truth, strict=True))
    ]
    answers, accepted = decode(engine, prompts, 40, drafts, sampling)
    assert answers == truth
    assert accepted > 60


@needs_kernels
@pytest.mark.parametrize("kind", [SlotModel, NativeLlama])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_are_equal_to_the_bit_in_any_batch(
    kind: type[SlotModel | NativeLlama], dtype: torch.dtype
) -> None:
    kernels = load_kernels()
    model = kind(build("llama").to(dtype), slots=3, slot_size=128, threads=1, kernels=kernels)
    sequence = prompt_of(30)
    alone = RowBuilder()
    alone.add_sequence(0, 0, sequence)
    reference = model.forward(alone.build(), range(30))
    for split in (1, 2, 9, 29):
        first, second = RowBuilder(), RowBuilder()
        first.add_sequence(2, 0, prompt_of(17, seed=9))
        first.add_sequence(1, 0, sequence[:split])
        second.add_sequence(1, split, sequence[split:])
        second.add_sequence(2, 17, prompt_of(5, seed=8))
        head = model.forward(first.build(), range(17, 17 + split))
        tail = model.forward(second.build(), range(30 - split))
        assert torch.equal(torch.cat([head, tail]), reference)


def test_evicted_session_is_prefilled_again() -> None:
    engine = _engine("llama", slots=1)
    prompts = [prompt_of(20, seed=1), prompt_of(20, seed=2)]
    truth = [decode(engine, [prompt], 12, [nothing])[0][0] for prompt in prompts]
    sequences = [list(prompt) for prompt in prompts]
    for turn in range(24):
        i = turn % 2
        answer, _ = decode(engine, [sequences[i]], 1, [nothing])
        sequences[i] += answer[0]
    assert [s[20:] for s in sequences] == truth


def test_following_message_reuses_its_prefix() -> None:
    engine = _engine("llama", slots=2, chunk=8)
    first = prompt_of(40)
    answer, _ = decode(engine, [first], 10, [nothing])
    followup = first + answer[0][:-1] + prompt_of(3, seed=5)
    slot = engine._slots.acquire("next", followup, set())
    assert len(slot.tokens) == len(first) + 9


@needs_kernels
@pytest.mark.parametrize(
    ("way", "cells"),
    [("layers", None), ("layers", torch.int8), ("fused", torch.bfloat16), ("fused", torch.int8)],
    ids=str,
)
def test_sessions_copy_what_others_have_read_to_the_bit(
    way: str, cells: torch.dtype | None
) -> None:
    system = prompt_of(64)
    prompts = [system + prompt_of(5 + i, seed=i) for i in range(6)]
    alone = [
        decode(_engine("llama", way=way, cells=cells), [prompt], 12, [nothing])[0][0]
        for prompt in prompts
    ]
    engine = _engine("llama", slots=6, way=way, cells=cells)
    drafts = [
        random_trees(prompt + answer, VOCABULARY, seed=i)
        for i, (prompt, answer) in enumerate(zip(prompts, alone, strict=True))
    ]
    assert decode(engine, prompts[:2], 12, drafts[:2])[0] == alone[:2], "begun together"
    assert engine.kv_use.num_found == len(system)
    live = VerifyWork("live", tuple(prompts[2]), len(prompts[2]), EMPTY_TREE, Sampling())
    assert isinstance(engine.step([live]).outcomes[0], VerificationResult)
    assert decode(engine, prompts[3:], 12, drafts[3:])[0] == alone[3:], "beside a live one"
    assert engine.kv_use.num_found == 5 * len(system)


def test_a_prefix_is_read_once_by_sessions_that_begin_together() -> None:
    system = prompt_of(64)
    works = [
        VerifyWork(str(i), (*system, 5 + i, 6), len(system) + 2, EMPTY_TREE, Sampling())
        for i in range(4)
    ]
    engine = _engine("llama", chunk=32, way="plain")
    steps = [engine.step(works) for _ in range(3)]
    assert [step.num_rows for step in steps] == [32, 32, 4 * 2]
    assert all(isinstance(outcome, VerificationResult) for outcome in steps[-1].outcomes)


def test_sessions_that_wait_for_a_prefix_go_on_when_its_reader_is_cancelled() -> None:
    system, engine = prompt_of(64), _engine("llama", chunk=32, way="plain")
    reader, waiting = (
        VerifyWork(key, tuple(system), len(system), EMPTY_TREE, Sampling())
        for key in ("reader", "waiting")
    )
    assert engine.step([reader, waiting]).num_rows == 32
    engine.release("reader")
    [outcome] = engine.step([waiting]).outcomes
    assert isinstance(outcome, VerificationResult)
    assert engine.kv_use.num_found == 32
