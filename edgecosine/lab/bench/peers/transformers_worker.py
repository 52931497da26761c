"""transformers' process in the comparison with peers; `messages.py` defines its messages."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers

from edgecosine.lab.bench.peers.messages import Kind, PeerAnswer, PeerOrder, PeerReady, Reply, Setup
from edgecosine.lab.bench.transformers_models import (
    DTYPES,
    Answer,
    generate,
    load_model,
    serve,
    trial_seconds,
)

DRAFT_LENGTHS = (None, 3, 5)
"""Lengths of drafts in assisted generation; None is the default of transformers."""
NUM_TRIALS = 2
"""Number of trial prompts, few since this peer is slow."""

Setting = tuple[str, int | None]
"""Dtype and draft length."""


class TransformersPeer:
    """The target in each dtype to try, and drafters in the fastest one."""

    def __init__(self, setup: Setup) -> None:
        self._end_tokens = frozenset(setup.end_tokens)
        self._targets = {dtype: self._load(setup.target, dtype) for dtype in DTYPES}
        self._drafters = dict[Setting, Any]()
        self._quickest = dict[Kind, Setting]()
        self._trials_s = dict[str, float]()
        refused: dict[Kind, str] = {"batched": "is measured by `scripts/bench`"}
        self._choose("plain", setup, [(dtype, None) for dtype in DTYPES])
        if setup.drafter:
            dtype, _ = self._quickest["plain"]
            settings = [(dtype, length) for length in DRAFT_LENGTHS]
            # One for each setting, since transformers changes the generation settings of a drafter.
            self._drafters = {each: self._load(setup.drafter, *each) for each in settings}
            self._choose("drafted", setup, settings)
        else:
            refused["drafted"] = "there is no draft model"
        chosen = {
            kind: {"dtype": dtype, "length": length}
            for kind, (dtype, length) in self._quickest.items()
        }
        versions = {"transformers": transformers.__version__, "torch": str(torch.__version__)}
        self.ready = PeerReady(chosen, refused, self._trials_s, {}, versions)

    def _choose(self, kind: Kind, setup: Setup, settings: list[Setting]) -> None:
        """Try all settings on the trial prompts and keep the fastest."""
        order = PeerOrder(kind, setup.trial_prompts[:NUM_TRIALS], setup.trial_tokens)
        seconds = trial_seconds(settings, partial(self._answers, order))
        for (dtype, length), taken_s in seconds.items():
            name = f"{kind}, dtype {dtype}, length {length or 'by default'}"
            self._trials_s[name] = round(taken_s, 4)
        self._quickest[kind] = min(seconds, key=seconds.__getitem__)

    def answer(self, order: PeerOrder) -> Reply:
        """Answer an order with the fastest setting, one prompt after another."""
        started = time.perf_counter()
        answers = self._answers(order, self._quickest[order.kind])
        return Reply(answers, time.perf_counter() - started)

    def _answers(self, order: PeerOrder, setting: Setting) -> list[PeerAnswer]:
        drafter = self._drafters[setting] if order.kind == "drafted" else None
        return [
            self._answer(setting[0], prompt, order.max_tokens, drafter) for prompt in order.prompts
        ]

    def _answer(
        self, dtype: str, prompt: tuple[int, ...], max_tokens: int, drafter: Any
    ) -> PeerAnswer:
        tokens = torch.tensor([prompt])
        new, first_s, elapsed_s = generate(
            self._targets[dtype], tokens, torch.ones_like(tokens), max_tokens, drafter
        )
        answer = itertools.takewhile(lambda token: token not in self._end_tokens, new[0].tolist())
        return PeerAnswer(list(answer), first_s, elapsed_s)

    def _load(self, name: str, dtype: str, length: int | None = None) -> Any:
        return load_model(
            Path(name), dtype, end_tokens=sorted(self._end_tokens), draft_length=length
        )


def start(lines: Iterator[bytes]) -> tuple[PeerReady, Answer]:
    """Load the models of the `Setup` in the first line."""
    setup = msgspec.json.decode(next(lines), type=Setup)
    torch.set_num_threads(setup.threads)
    peer = TransformersPeer(setup)
    return peer.ready, lambda line: peer.answer(msgspec.json.decode(line, type=PeerOrder))


if __name__ == "__main__":
    serve(start)
