"""The exactness check: finds no fault in the engine, and finds injected faults."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.engine.attention import BatchRows
from edgecosine.engine.base import StepResult, TargetEngine, VerificationResult, VerifyWork
from edgecosine.engine.cpu.kernel_library import Kernels, KernelsUnavailable, load_kernels
from edgecosine.engine.cpu.native_llama import NativeLlama
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.slot_model import SlotModel
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.lab.exactness.check import (
    CheckCounts,
    EngineShape,
    ModelUnderTest,
    Opened,
    RandomSpeculation,
    Recorder,
    plain_answer,
)
from edgecosine.lab.exactness.drafts import MOODS, MOST_NODES, Mood, good
from edgecosine.lab.exactness.models import Questions
from tests.engine.models import VOCABULARY, build, prompt_of

try:
    KERNELS: Kernels | None = load_kernels()
except KernelsUnavailable:
    KERNELS = None
needs_kernels = pytest.mark.skipif(KERNELS is None, reason="no C++ compiler for the kernels")

ALONE = EngineShape(slots=1, chunk=64, threads=1)
CELLS = 224


def subject(
    family: str = "llama",
    *,
    fused: bool = False,
    kernels: Kernels | None = KERNELS,
    dtype: torch.dtype = torch.float32,
    cells: torch.dtype | None = None,
    model: Callable[[ForwardModel], ForwardModel] = lambda model: model,
    engine: Callable[[TargetEngine], TargetEngine] = lambda engine: engine,
) -> ModelUnderTest:
    """A tiny model; `model` and `engine` may inject faults, except into the reference."""
    built = build(family, dtype=dtype)

    def open_engine(shape: EngineShape) -> Opened:
        kind: Any = NativeLlama if fused else SlotModel
        fresh = copy.deepcopy(built)  # whoever packs weights takes them
        made = kind(
            fresh,
            slots=shape.slots,
            slot_size=CELLS,
            threads=shape.threads,
            kernels=kernels,
            cells=cells,
        )
        recorder = Recorder(made if shape == ALONE else model(made))
        target = TransformerTarget(
            recorder, slots=shape.slots, max_context=CELLS - 64, chunk=shape.chunk
        )
        return Opened(target if shape == ALONE else engine(target), recorder)

    return ModelUnderTest(family, VOCABULARY, open_engine)


def check(tested: ModelUnderTest, num_answers: int = 12, seed: int = 1) -> CheckCounts:
    """Answers of 24 tokens under random speculation; every other prompt has the same start."""
    prompts = [prompt_of(20, seed=i) for i in range(num_answers)]
    prompts[::2] = [prompts[0] + prompt[:4] for prompt in prompts[::2]]
    questions = Questions([*map(tuple, prompts)], seed)
    truths = []
    for _ in range(num_answers):
        question = questions.next(truths)
        question = replace(question, prompt=tuple(t % VOCABULARY for t in question.prompt))
        truths.append(plain_answer(tested.open(ALONE), question, 24))
    return RandomSpeculation(tested, seed).run(truths)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@needs_kernels
@pytest.mark.parametrize(
    ("family", "fused", "dtype", "cells"),
    [
        ("llama", True, torch.float32, torch.int8),
        ("mistral with a window", True, torch.float32, None),
        ("llama", False, torch.bfloat16, None),
        ("gemma2", False, torch.float32, torch.int8),
        ("gpt2", False, torch.bfloat16, torch.bfloat16),
    ],
    ids=str,
)
def test_answers_and_logits_are_equal_to_the_bit_under_random_speculation(
    family: str, fused: bool, dtype: torch.dtype, cells: torch.dtype | None
) -> None:
    found = check(subject(family, fused=fused, dtype=dtype, cells=cells))
    assert found.answers == 12
    assert (found.answers_diverging, found.tokens_diverging, found.logits_diverging) == (0, 0, 0)
    # Sessions that were cancelled are answered again, so their logits count twice.
    assert found.logits >= 12 * 24
    assert found.mean_accepted > 0.8
    assert found.followups == 2


def test_random_speculation_includes_every_kind_of_event() -> None:
    total, tested = CheckCounts(), subject(fused=KERNELS is not None)
    for seed in range(6):
        total.add(check(tested, num_answers=8, seed=seed))
    assert min(
        total.restarts, total.cancellations, total.releases, total.crowded_passes,
        total.shared_passes, total.drafted_rounds, total.accepted, total.copied,
    ) > 0  # fmt: skip


class _Flipping:
    """Generates one wrong token in the middle of one answer."""

    def __init__(self, engine: TargetEngine) -> None:
        self._engine, self._has_lied = engine, False

    @property
    def max_context(self) -> int:
        return self._engine.max_context

    def step(self, batch: Sequence[VerifyWork]) -> StepResult:
        result = self._engine.step(batch)
        for number, (work, outcome) in enumerate(zip(batch, result.outcomes, strict=True)):
            is_middle = 4 <= len(work.tokens) - work.num_prompt < 8
            if is_middle and not self._has_lied and isinstance(outcome, VerificationResult):
                self._has_lied = True
                wrong = (outcome.bonus + 1) % VOCABULARY
                result.outcomes[number] = msgspec.structs.replace(outcome, bonus=wrong)
        return result

    def release(self, key: str) -> None:
        self._engine.release(key)


def test_wrong_token_is_detected() -> None:
    found = check(subject(engine=_Flipping))
    assert found.answers_diverging >= 1
    assert found.tokens_diverging >= 1


class _CellOrder:
    """Lets tree nodes attend to all KV positions before their own, as a causal mask would."""

    def __init__(self, model: ForwardModel) -> None:
        self._model, self.slot_size = model, model.slot_size

    def forward(self, rows: BatchRows, keep: Sequence[int]) -> torch.Tensor:
        seen = torch.where(rows.path_length > 0, rows.kv_position + 1, rows.length).int()
        blind = torch.zeros_like(rows.path_length)
        return self._model.forward(replace(rows, length=seen, path_length=blind), keep)

    def move(self, slot: int, source: Sequence[int], target: Sequence[int]) -> None:
        self._model.move(slot, source, target)

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        self._model.copy(source, target, start, end)


class _NoMoves(_CellOrder):
    """Leaves accepted nodes at their tree positions."""

    def forward(self, rows: BatchRows, keep: Sequence[int]) -> torch.Tensor:
        return self._model.forward(rows, keep)

    def move(self, slot: int, source: Sequence[int], target: Sequence[int]) -> None:
        del slot, source, target


@pytest.mark.parametrize("fault", [_CellOrder, _NoMoves])
def test_tree_that_is_attended_or_stored_in_cache_order_is_detected(
    fault: type[ForwardModel],
) -> None:
    found = check(subject(model=fault), num_answers=6)
    assert found.answers_diverging >= 1
    assert found.logits_diverging >= 1


def test_rounding_of_stock_kernels_is_detected_in_the_logits() -> None:
    found = check(subject(kernels=None), num_answers=4)
    assert found.logits_diverging >= 1


@pytest.mark.parametrize("mood", dict.fromkeys(MOODS), ids=lambda mood: mood.__name__)
@given(seed=st.integers(0, 1 << 16), coming=st.lists(st.integers(0, 9), max_size=20))
def test_drafts_are_trees_of_known_tokens(mood: Mood, seed: int, coming: list[int]) -> None:
    tree = mood(random.Random(seed), coming, 10)
    assert len(tree) <= MOST_NODES
    assert all(0 <= token < 10 for token in tree.tokens)


def test_good_drafts_contain_a_correct_path() -> None:
    coming, depths = list(range(100, 120)), []
    for seed in range(100):
        tree, node, depth = good(random.Random(seed), coming, 99), -1, 0
        while (child := tree.child(node, coming[depth])) is not None:
            node, depth = child, depth + 1
        depths.append(depth)
    assert sum(depths) / len(depths) > 3
