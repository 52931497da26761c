"""`edgecosine bench cache`: the gain of shared prefixes, and the effect of a narrow KV cache.

It uses one thread and no drafters. It measures the time from a request's first pass to its first
token, after a system prompt that no other request has and after one that a live request has read,
and the time to copy such a prompt from slot to slot. Then it reads and continues the same texts
with each number format of the cache.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from edgecosine import zoo
from edgecosine.engine.base import VerifyWork, expect_verified
from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.loading.load_model import load_model
from edgecosine.engine.options import KvDtype, Loaded, LoadOptions
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.lab.engine_calls import quiet_transformers
from edgecosine.lab.figures import Figure, Keep, Notify, counted, interval
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.tree import EMPTY_TREE

SYSTEM: Final = 512
"""Tokens of a system prompt, and of a text whose perplexity is measured."""
QUESTION: Final = 16
ANSWER: Final = 32
SLOTS: Final = 4
FORMATS: Final[tuple[KvDtype, ...]] = ("float32", "bfloat16", "int8")


@dataclass(slots=True)
class _Loaded:
    """A target with one number format of its cache."""

    runner: ForwardModel
    loaded: Loaded
    target: TransformerTarget

    def first_token_s(self, key: str, prompt: Sequence[int]) -> float:
        """Seconds from the first pass to the first token of a session, which stays open."""
        started = time.perf_counter()
        self._generate(key, prompt, 1)
        return time.perf_counter() - started

    def answer(self, prompt: Sequence[int]) -> list[int]:
        """A greedy answer of `ANSWER` tokens."""
        answer = self._generate("answer", prompt, ANSWER)
        self.target.release("answer")
        return answer

    def _generate(self, key: str, prompt: Sequence[int], length: int) -> list[int]:
        tokens = list(prompt)
        while len(tokens) < len(prompt) + length:
            work = VerifyWork(key, tuple(tokens), len(prompt), EMPTY_TREE, Sampling())
            result = expect_verified(self.target.step([work]).outcomes[0])
            tokens += [] if result is None else [result.bonus]
        return tokens[len(prompt) :]

    def losses(self, tokens: Sequence[int]) -> torch.Tensor:
        """Negative log-likelihood of each token of a text except the first, in nats."""
        rows = RowBuilder()
        rows.add_sequence(0, 0, tokens)
        logits = self.runner.forward(rows.build(), range(len(tokens) - 1))
        return torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="none")


def run_cache_bench(
    model: str, repeats: int, notify: Notify, keep: Keep, each: int = 16
) -> dict[str, Figure]:
    """Measure a model; returns its figures. It answers `each` prompts of each domain.

    Figures and runs are saved after each part.
    """
    quiet_transformers()
    notify(f"loading {model}")
    first = _load(model, FORMATS[0])
    encode = first.loaded.codec.encode if first.loaded.codec is not None else None
    assert encode is not None
    texts = [encode(" ".join(domain))[:SYSTEM] for domain in zoo.prompts().values()]
    prompts = [encode(text) for domain in zoo.prompts().values() for text in domain[:each]]
    notify(f"timing first tokens after {SYSTEM} tokens, alone and shared, {repeats} times")
    runs = _time_prefixes(first, max(texts, key=len), prompts, repeats)
    figures = _prefix_figures(runs)
    keep(figures, runs)
    truth: list[list[int]] = []
    for kv_dtype in FORMATS:
        notify(f"reading and answering with a cache in {kv_dtype}")
        served = first if kv_dtype == FORMATS[0] else _load(model, kv_dtype)
        answers = [served.answer(prompt) for prompt in prompts]
        truth = truth or answers
        losses = torch.cat([served.losses(text) for text in texts])
        figures |= {
            f"kv_bytes_per_token_{kv_dtype}": counted(_bytes_per_token(served), "bytes"),
            f"perplexity_{kv_dtype}": counted(math.exp(losses.mean().item()), "perplexity"),
            f"equal_answers_{kv_dtype}": interval(
                [float(one == other) for one, other in zip(answers, truth, strict=True)],
                statistics.fmean,
                "share of answers",
            ),
        }
        keep(figures, runs)
    return figures


def _load(model: str, kv_dtype: KvDtype) -> _Loaded:
    context = SYSTEM + 2 * QUESTION
    options = LoadOptions(
        model, device="cpu", threads=1, slots=SLOTS, context=context, kv_dtype=kv_dtype
    )
    runner, loaded, _ = load_model(options)
    return _Loaded(runner, loaded, TransformerTarget(runner, slots=SLOTS, max_context=context))


def _bytes_per_token(served: _Loaded) -> float:
    return served.loaded.cache / (SLOTS * served.runner.slot_size)


def _time_prefixes(
    served: _Loaded, system: Sequence[int], prompts: Sequence[Sequence[int]], repeats: int
) -> list[dict[str, Any]]:
    """Seconds to the first token, alone and beside a live request with the same system prompt,
    and seconds to copy that prompt."""
    runs = []
    for repeat in range(repeats):
        # The first token differs each time, so that the cache has nothing of a former run.
        own = [1000 + repeat, *system[1:]]
        one, other = (prompts[(repeat + i) % len(prompts)][:QUESTION] for i in (0, 1))
        alone = served.first_token_s("first", [*own, *one])
        shared = served.first_token_s("second", [*own, *other])
        started = time.perf_counter()
        served.runner.copy(0, 1, 0, SYSTEM)
        copied = time.perf_counter() - started
        runs.append({"repeat": repeat, "alone_s": alone, "shared_s": shared, "copied_s": copied})
        for key in ("first", "second"):
            served.target.release(key)
    return runs


def _prefix_figures(runs: Sequence[Mapping[str, float]]) -> dict[str, Figure]:
    return {
        "first_token_ms": interval([1e3 * run["alone_s"] for run in runs], unit="ms"),
        "first_token_shared_ms": interval([1e3 * run["shared_s"] for run in runs], unit="ms"),
        "copy_ms": interval([1e3 * run["copied_s"] for run in runs], unit="ms"),
        "shared_over_alone": interval([run["shared_s"] / run["alone_s"] for run in runs]),
    }
