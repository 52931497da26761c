"""transformers' own generation on the target's weights and core: a child process of the benchmark.

`python -m edgecosine.lab.bench.transformers_worker BALLAST` reads orders from standard input and
writes answers to standard output, one JSON object a line; it ends with the input. It first reports
the quickest settings on this machine and uses them: a baseline is not to be blamed for the wrong
dtype.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria
from transformers.utils import logging as transformers_logging

from edgecosine import zoo
from edgecosine.engine.loading.ballast import add_ballast
from edgecosine.lab.bench.transformers_messages import (
    Kind,
    Setting,
    TransformersAnswer,
    TransformersOrder,
    TransformersReady,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DRAFT_LENGTHS = (None, 5)
"""Of assisted generation: transformers' own way of choosing it, and a fixed one."""
TRIAL_TOKENS = 24


class Stock:
    """The models in each dtype."""

    def __init__(self, ballast: int) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(zoo.DIRECTORY / zoo.TARGET)
        self._targets = {dtype: _model(zoo.TARGET, dtype, ballast) for dtype in DTYPES}
        self._best = zoo.best_drafters()
        self._drafters = {
            (name, setting): _drafter(name, setting)
            for name in sorted(set(self._best.values()))
            for setting in _settings(DRAFT_LENGTHS)
        }

    def choose_settings(self) -> TransformersReady:
        """Try all settings on a prompt of each domain."""
        domains, prompts = zip(
            *((domain, texts[-1]) for domain, texts in zoo.prompts().items()), strict=True
        )
        trials: dict[str, float] = {}
        quickest: dict[Kind, Setting] = {}
        lengths: dict[Kind, tuple[int | None, ...]] = {
            "batched": (None,),
            "assisted": DRAFT_LENGTHS,
        }
        for kind, tried in lengths.items():
            order = TransformersOrder(kind, domains, prompts, TRIAL_TOKENS)
            seconds = {
                setting: min(self._timed(order, setting) for _ in range(2))
                for setting in _settings(tried)
            }
            quickest[kind] = min(seconds, key=seconds.__getitem__)
            for setting, elapsed_s in seconds.items():
                ahead = f", {setting.draft_length} ahead" if setting.draft_length else ""
                trials[f"{kind}, {setting.dtype}{ahead}"] = round(elapsed_s, 3)
        return TransformersReady(quickest, trials)

    def answer(self, order: TransformersOrder, setting: Setting) -> list[TransformersAnswer]:
        """Carry out an order."""
        if order.kind == "batched":
            return self._generate(order.prompts, order.max_tokens, setting)
        answers = []
        for domain, prompt in zip(order.domains, order.prompts, strict=True):
            drafter = self._drafters[self._best[domain], setting]
            answers += self._generate([prompt], order.max_tokens, setting, assistant_model=drafter)
        return answers

    def _timed(self, order: TransformersOrder, setting: Setting) -> float:
        started = time.perf_counter()
        self.answer(order, setting)
        return time.perf_counter() - started

    @torch.inference_mode()
    def _generate(
        self, prompts: Sequence[str], max_tokens: int, setting: Setting, **more: Any
    ) -> list[TransformersAnswer]:
        started, first = time.perf_counter(), FirstTokens()
        rows = self._tokenizer(
            list(prompts), return_tensors="pt", padding=True, padding_side="left"
        )
        made = self._targets[setting.dtype].generate(
            input_ids=rows["input_ids"],
            attention_mask=rows["attention_mask"],
            max_new_tokens=max_tokens,
            do_sample=False,
            stopping_criteria=[first],
            **more,
        )
        new = made[:, rows["input_ids"].shape[1] :]
        texts = self._tokenizer.batch_decode(new)
        elapsed_s = time.perf_counter() - started
        first_text_s = (first.at or time.perf_counter()) - started
        return [TransformersAnswer(text, new.shape[1], first_text_s, elapsed_s) for text in texts]


class FirstTokens(StoppingCriteria):
    """Stops nothing; knows when it was first asked."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.at = self.at or time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def _settings(lengths: Sequence[int | None]) -> list[Setting]:
    return [Setting(dtype, length) for dtype, length in itertools.product(DTYPES, lengths)]


def _drafter(name: str, setting: Setting) -> Any:
    model = _model(name, setting.dtype, 1)
    if setting.draft_length is not None:
        set_draft_length(model, setting.draft_length)
    return model


def set_draft_length(drafter: Any, length: int) -> None:
    """Make assisted generation draft exactly so many tokens, however sure the drafter is."""
    config = drafter.generation_config
    config.num_assistant_tokens = length
    config.num_assistant_tokens_schedule = "constant"
    config.assistant_confidence_threshold = 0.0


def _model(name: str, dtype: str, ballast: int) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(zoo.DIRECTORY / name, dtype=DTYPES[dtype])
    if ballast > 1:
        add_ballast(model, ballast)
    # Answers have exactly so many tokens, as the runtime's in the benchmark.
    model.generation_config.eos_token_id = None
    return model.eval()


def main(ballast: int, read: Callable[[], bytes], write: Callable[[bytes], None]) -> None:
    """Serve orders until there is no more input."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    stock = Stock(ballast)
    ready = stock.choose_settings()
    write(msgspec.json.encode(ready) + b"\n")
    while line := read():
        order = msgspec.json.decode(line, type=TransformersOrder)
        write(msgspec.json.encode(stock.answer(order, ready.settings[order.kind])) + b"\n")


def _write(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.stdin.buffer.readline, _write)
