"""The training loop of the zoo's models: Muon for matrices, AdamW for the rest, linear decay."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaForCausalLM

from edgecosine.lab.zoo.muon import Muon

Tokens = NDArray[np.uint16]
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class TrainSettings:
    """Steps of `accumulate` micro-batches of `rows` x `length` tokens.

    The learning rate falls to zero at step `horizon`, by default the last one.
    """

    steps: int
    rows: int = 8
    length: int = 256
    accumulate: int = 2
    warm_up: int = 40
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    clip: float = 1.0
    seed: int = 1
    log_every: int = 10
    compiled: bool = True
    horizon: int | None = None

    @property
    def tokens_per_step(self) -> int:
        return self.rows * self.length * self.accumulate


@dataclass(frozen=True)
class TrainReport:
    """Steps, tokens and seconds of a training, and its last smoothed loss in nats per token."""

    steps: int
    tokens: int
    seconds: float
    final_loss: float


def windows(sources: Sequence[Tokens], settings: TrainSettings) -> Iterator[Tensor]:
    """Yield (rows, length + 1) token windows, an equal number from each source."""
    rng = np.random.default_rng(settings.seed)
    longs = settings.length + 1
    for batch in range(settings.steps * settings.accumulate):
        rows = []
        for row in range(settings.rows):
            tokens = sources[(row + batch * settings.rows) % len(sources)]
            start = int(rng.integers(0, len(tokens) - longs))
            rows.append(tokens[start : start + longs])
        yield torch.from_numpy(np.stack(rows).astype(np.int64))


def learning_rate_factor(step: int, settings: TrainSettings) -> float:
    """The learning rate of a step over the highest: linear warm-up, then linear decay to zero."""
    end = settings.horizon or settings.steps
    warm = (step + 1) / settings.warm_up
    cool = (end - step) / max(1, end - settings.warm_up)
    return min(1.0, warm, cool)


def next_token_loss(model: LlamaForCausalLM) -> Callable[[Tensor], Tensor]:
    """A function that returns the mean cross-entropy of (rows, length + 1) windows, in nats."""

    def loss(batch: Tensor) -> Tensor:
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].reshape(-1))

    return loss


def compiled(
    function: Callable[[Batch], Tensor], settings: TrainSettings
) -> Callable[[Batch], Tensor]:
    """The function, compiled if configured and if a C++ compiler is installed: a fifth faster."""
    if not settings.compiled or shutil.which("g++") is None:
        return function
    # A second model in the same process would otherwise get slow, general code.
    torch.compiler.reset()
    result: Callable[[Batch], Tensor] = torch.compile(function, dynamic=False)
    return result


class Optimisers:
    """Muon on the hidden matrices, AdamW on embeddings and norms, one schedule."""

    def __init__(self, model: LlamaForCausalLM, settings: TrainSettings) -> None:
        hidden: list[Tensor] = []
        others: list[Tensor] = []
        for name, parameter in model.named_parameters():
            is_matrix = parameter.ndim == 2 and "embed" not in name
            (hidden if is_matrix else others).append(parameter)
        self._settings = settings
        self._all = hidden + others
        self._muon = Muon(hidden)
        self._adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, index: int) -> None:
        """Update from the accumulated gradients and clear them."""
        factor = learning_rate_factor(index, self._settings)
        torch.nn.utils.clip_grad_norm_(self._all, self._settings.clip)
        self._muon.lr = factor * self._settings.muon_lr
        for group in self._adam.param_groups:
            group["lr"] = factor * self._settings.adam_lr
        self._muon.step()
        self._adam.step()
        for parameter in self._all:
            parameter.grad = None


def train(
    name: str,
    model: LlamaForCausalLM,
    batches: Iterator[Batch],
    loss_function: Callable[[Batch], Tensor],
    settings: TrainSettings,
) -> TrainReport:
    """Train a model, and print rate, loss and remaining time."""
    model.train()
    optimisers = Optimisers(model, settings)
    started = time.monotonic()
    smooth = 0.0
    for step in range(settings.steps):
        total = 0.0
        for _ in range(settings.accumulate):
            loss = loss_function(next(batches)) / settings.accumulate
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        optimisers.step(step)
        smooth = total if step == 0 else 0.95 * smooth + 0.05 * total
        if step % settings.log_every == settings.log_every - 1:
            _log(name, step + 1, smooth, settings, time.monotonic() - started)
    model.eval()  # type: ignore[no-untyped-call]
    seconds = time.monotonic() - started
    return TrainReport(settings.steps, settings.steps * settings.tokens_per_step, seconds, smooth)


def _log(name: str, step: int, loss: float, settings: TrainSettings, seconds: float) -> None:
    rate = step * settings.tokens_per_step / seconds
    left = seconds / step * (settings.steps - step)
    print(
        f"{name} step {step}/{settings.steps} loss {loss:.3f} {rate:.0f} tokens/s "
        f"left {left / 60:.1f} min",
        flush=True,
    )
