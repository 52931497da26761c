"""Times forward passes of the engine with each form of weights, and drafts of a drafter."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence

import torch

from edgecosine.engine.base import DraftWork, VerifyWork, expect_verified
from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.loading.load import load_drafter
from edgecosine.engine.loading.load_model import load_model
from edgecosine.engine.options import LoadOptions, Weights
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.lab.bench.passes.messages import Order
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.messages import SharedNoise
from edgecosine.protocol.wire.tree import EMPTY_TREE

_DRAFT_STEPS = 6
_CHUNK = 512
"""Prompt tokens of one pass, the same number as in llama.cpp."""


class OurEngine:
    """A target in one form of weights."""

    def __init__(
        self, path: str, form: Weights, *, sessions: int, context: int, threads: int
    ) -> None:
        options = LoadOptions(
            path, device="cpu", threads=threads, slots=sessions, context=context, weights=form
        )
        self.runner, self.loaded, _ = load_model(options)
        self._target = TransformerTarget(
            self.runner, slots=sessions, max_context=context, chunk=_CHUNK
        )

    def run(self, order: Order) -> list[float]:
        """Seconds of each repetition of an order."""
        _fill(self.runner, order)
        return [
            self._decode(order) if order.steps else _pass(self.runner, order)
            for _ in range(order.repeats)
        ]

    def _decode(self, order: Order) -> float:
        """Seconds of whole steps of the engine, including sampling and slots."""
        sequences = [list(tokens) for tokens in order.tokens]
        for key in range(len(sequences)):
            self._target.release(str(key))
        self._step([tokens[: order.start] for tokens in sequences])
        started = time.perf_counter()
        for _ in range(order.steps + 1):
            chosen = self._step(sequences)
            for sequence, token in zip(sequences, chosen, strict=True):
                sequence.append(token)
        return time.perf_counter() - started

    def _step(self, sequences: Sequence[Sequence[int]]) -> list[int]:
        works = [
            VerifyWork(str(key), tuple(tokens), len(tokens), EMPTY_TREE, Sampling())
            for key, tokens in enumerate(sequences)
        ]
        verified = map(expect_verified, self._target.step(works).outcomes)
        return [result.bonus for result in verified if result is not None]

    def perplexity(self, texts: Sequence[Sequence[int]]) -> float:
        """Perplexity of the texts, each read from its beginning."""
        total, count = 0.0, 0
        for tokens in texts:
            rows = RowBuilder()
            rows.add_sequence(0, 0, tokens)
            logits = self.runner.forward(rows.build(), range(len(tokens) - 1))
            following = torch.tensor(tokens[1:])
            loss = torch.nn.functional.cross_entropy(logits, following, reduction="sum")
            total, count = total + loss.item(), count + len(following)
        return math.exp(total / count)


def _fill(runner: ForwardModel, order: Order) -> None:
    if not order.start or order.steps:
        return
    for session, tokens in enumerate(order.tokens):
        rows = RowBuilder()
        rows.add_sequence(session, 0, tokens[: order.start])
        runner.forward(rows.build(), [])


def _pass(runner: ForwardModel, order: Order) -> float:
    started = time.perf_counter()
    rows, keep = RowBuilder(), list[int]()
    for session, tokens in enumerate(order.tokens):
        rows.add_sequence(session, order.start, tokens[order.start :])
        keep += range(len(keep), len(rows)) if order.keeps_all else [len(rows) - 1]
    runner.forward(rows.build(), keep)
    return time.perf_counter() - started


class OurDrafter:
    """A drafter whose drafts are timed."""

    def __init__(self, name: str, sessions: int, threads: int) -> None:
        options = LoadOptions(name, device="cpu", threads=threads, slots=sessions)
        self._engine, self.loaded = load_drafter(options)
        self._last = itertools.cycle(range(1000, 2000))

    def run(self, prompts: Sequence[Sequence[int]]) -> float:
        """Seconds to draft a chain of six tokens after each prompt."""
        # The last token differs each time, so that the cache has nothing of a former run.
        works = [
            DraftWork(str(key), (*prompt, next(self._last)), _DRAFT_STEPS, 1, SharedNoise())
            for key, prompt in enumerate(prompts)
        ]
        started = time.perf_counter()
        self._engine.draft(works)
        return time.perf_counter() - started
