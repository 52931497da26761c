"""transformers on the target's weights and core: a child process of the benchmark.

`python -m edgecosine.lab.bench.transformers_worker BALLAST [READY]` first reports the fastest
settings on this machine and uses them, so that a wrong dtype does not slow down the baseline. READY
is a former report, which makes the trials unnecessary. The process then answers each
`TransformersOrder` with a list of `TransformersAnswer`.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import msgspec
import torch
from transformers import AutoTokenizer

from edgecosine import zoo
from edgecosine.lab.bench.transformers_messages import (
    Kind,
    Setting,
    TransformersAnswer,
    TransformersOrder,
    TransformersReady,
)
from edgecosine.lab.bench.transformers_models import (
    DTYPES,
    Answer,
    generate,
    load_model,
    serve,
    trial_seconds,
)

DRAFT_LENGTHS = (None, 5)
"""Lengths of drafts in assisted generation: the default of transformers, and a fixed one."""
TRIAL_TOKENS = 24


class Stock:
    """The target and the drafters in each dtype, loaded by transformers."""

    def __init__(self, ballast: int) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(zoo.DIRECTORY / zoo.TARGET)
        self._targets = {
            dtype: load_model(zoo.DIRECTORY / zoo.TARGET, dtype, ballast=ballast)
            for dtype in DTYPES
        }
        self._best = zoo.best_drafters()
        self._drafters = {
            (name, setting): load_model(
                zoo.DIRECTORY / name, setting.dtype, draft_length=setting.draft_length
            )
            for name in sorted(set(self._best.values()))
            for setting in _settings(DRAFT_LENGTHS)
        }

    def choose_settings(self) -> TransformersReady:
        """Try all settings on a prompt of each domain; returns the fastest ones."""
        domains, prompts = zip(
            *((domain, texts[-1]) for domain, texts in zoo.prompts().items()), strict=True
        )
        trials: dict[str, float] = {}
        quickest: dict[Kind, Setting] = {}
        lengths: dict[Kind, tuple[int | None, ...]] = {
            "batched": (None,),
            "plain": (None,),
            "assisted": DRAFT_LENGTHS,
        }
        for kind, tried in lengths.items():
            order = TransformersOrder(kind, domains, prompts, TRIAL_TOKENS)
            seconds = trial_seconds(_settings(tried), partial(self.answer, order))
            quickest[kind] = min(seconds, key=seconds.__getitem__)
            for setting, elapsed_s in seconds.items():
                ahead = f", {setting.draft_length} ahead" if setting.draft_length else ""
                trials[f"{kind}, {setting.dtype}{ahead}"] = round(elapsed_s, 3)
        return TransformersReady(quickest, trials)

    def answer(self, order: TransformersOrder, setting: Setting) -> list[TransformersAnswer]:
        """Carry out an order."""
        if order.kind == "batched":
            return self._generate(order.prompts, order.max_tokens, setting)
        return [
            answer
            for domain, prompt in zip(order.domains, order.prompts, strict=True)
            for answer in self._generate(
                [prompt], order.max_tokens, setting, self._drafter(order.kind, domain, setting)
            )
        ]

    def _drafter(self, kind: Kind, domain: str, setting: Setting) -> Any:
        return self._drafters[self._best[domain], setting] if kind == "assisted" else None

    def _generate(
        self, prompts: Sequence[str], max_tokens: int, setting: Setting, drafter: Any = None
    ) -> list[TransformersAnswer]:
        rows = self._tokenizer(
            list(prompts), return_tensors="pt", padding=True, padding_side="left"
        )
        new, first_s, elapsed_s = generate(
            self._targets[setting.dtype], rows["input_ids"], rows["attention_mask"], max_tokens,
            drafter,
        )  # fmt: skip
        texts = self._tokenizer.batch_decode(new)
        return [TransformersAnswer(text, new.shape[1], first_s, elapsed_s) for text in texts]


def _settings(lengths: Sequence[int | None]) -> list[Setting]:
    return [Setting(dtype, length) for dtype, length in itertools.product(DTYPES, lengths)]


def start(_: Iterator[bytes]) -> tuple[TransformersReady, Answer]:
    """Load the models and choose their settings."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    stock = Stock(int(sys.argv[1]))
    ready = (
        msgspec.json.decode(sys.argv[2], type=TransformersReady)
        if len(sys.argv) > 2
        else stock.choose_settings()
    )

    def answer(line: bytes) -> list[TransformersAnswer]:
        order = msgspec.json.decode(line, type=TransformersOrder)
        return stock.answer(order, ready.settings[order.kind])

    return ready, answer


if __name__ == "__main__":
    serve(start)
