"""Generation by transformers alone, in child processes of the benchmarks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import torch
from transformers import AutoModelForCausalLM, StoppingCriteria

from edgecosine.engine.loading.ballast import add_ballast
from edgecosine.lab.engine_calls import quiet_transformers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
REPEATS = 2

Setting = TypeVar("Setting", bound=Hashable)
Answer = Callable[[bytes], Any]
"""Returns the answer to one line of input."""


class TransformersOutput(NamedTuple):
    """New tokens of each row, without the prompt; times in seconds since the call."""

    rows: torch.Tensor
    first_s: float
    elapsed_s: float


class _FirstTokens(StoppingCriteria):
    """Records the time of its first call, and never stops a row."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.at = self.at or time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def load_model(
    path: Path, dtype: str, *, end_tokens: Sequence[int] = (), ballast: int = 1,
    draft_length: int | None = None,
) -> Any:  # fmt: skip
    """Load a model from a directory or a GGUF file; without `end_tokens` answers have full length.

    With `draft_length` assisted generation always drafts that many tokens, whatever the drafter's
    confidence; with None it uses the default of transformers.
    """
    where = {"gguf_file": path.name} if path.is_file() else {}
    model: Any = AutoModelForCausalLM.from_pretrained(
        path.parent if where else path, dtype=DTYPES[dtype], **where
    )
    if ballast > 1:
        add_ballast(model, ballast)
    config = model.generation_config
    config.eos_token_id = sorted(end_tokens) or None
    if end_tokens:
        config.pad_token_id = min(end_tokens)
    if draft_length is not None:
        config.num_assistant_tokens = draft_length
        config.num_assistant_tokens_schedule = "constant"
        config.assistant_confidence_threshold = 0.0
    return model.eval()


@torch.inference_mode()
def generate(
    model: Any, tokens: torch.Tensor, mask: torch.Tensor, max_tokens: int, drafter: Any = None
) -> TransformersOutput:
    """Generate greedily, with assisted generation if there is a drafter."""
    started, first = time.perf_counter(), _FirstTokens()
    made = model.generate(
        input_ids=tokens, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False,
        stopping_criteria=[first], **({} if drafter is None else {"assistant_model": drafter}),
    )  # fmt: skip
    ended = time.perf_counter()
    return TransformersOutput(
        made[:, tokens.shape[1] :], (first.at or ended) - started, ended - started
    )


def trial_seconds(
    settings: Sequence[Setting], attempt: Callable[[Setting], Any]
) -> dict[Setting, float]:
    """Seconds of an attempt with each setting, the better of two."""

    def timed(setting: Setting) -> float:
        started = time.perf_counter()
        attempt(setting)
        return time.perf_counter() - started

    return {setting: min(timed(setting) for _ in range(REPEATS)) for setting in settings}


def serve(start: Callable[[Iterator[bytes]], tuple[msgspec.Struct, Answer]]) -> None:
    """Run a child process: write what `start` reports, then answer line after line.

    `start` may read lines itself; it ends with its input.
    """
    quiet_transformers()
    # What libraries print must not get between the lines.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

        def write(value: Any) -> None:
            out.write(msgspec.json.encode(value) + b"\n")
            out.flush()

        lines = iter(sys.stdin.buffer)
        ready, answer = start(lines)
        write(ready)
        for line in lines:
            write(answer(line))
