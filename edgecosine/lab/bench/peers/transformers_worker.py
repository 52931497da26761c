"""The process of transformers for the benchmark beside peers; `messages.py` has its protocol."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from edgecosine.lab.bench.peers.messages import Kind, PeerAnswer, PeerOrder, PeerReady, Reply, Setup
from edgecosine.lab.bench.transformers_worker import DTYPES, FirstTokens, set_draft_length

DRAFT_LENGTHS = (None, 3, 5)
"""Of assisted generation: transformers' own way of choosing it, and fixed ones."""
NUM_TRIALS = 4
"""Trial prompts that are used: this peer is slow."""
REPEATS = 2

Settings = dict[str, Any]


class TransformersPeer:
    """The models in each dtype that is tried."""

    def __init__(self, setup: Setup) -> None:
        self._end_tokens = frozenset(setup.end_tokens)
        self._targets = {dtype: self._load(setup.target, dtype) for dtype in DTYPES}
        self._drafters = {
            (dtype, length): self._drafter(setup.drafter, dtype, length)
            for dtype, length in itertools.product(DTYPES, DRAFT_LENGTHS)
            if setup.drafter
        }
        trials = setup.trial_prompts[:NUM_TRIALS]
        kinds: dict[Kind, tuple[int | None, ...]] = {"plain": (None,)}
        refused: dict[Kind, str] = {"batched": "is measured by `scripts/bench`"}
        if setup.drafter:
            kinds["drafted"] = DRAFT_LENGTHS
        else:
            refused["drafted"] = "there is no draft model"
        settings, trials_s = dict[Kind, Settings](), dict[str, float]()
        for kind, lengths in kinds.items():
            tried = dict[str, Settings]()
            for dtype, length in itertools.product(DTYPES, lengths):
                own: Settings = {"dtype": dtype, "length": length}
                seconds = min(
                    self.answer(PeerOrder(kind, trials, setup.trial_tokens), own).elapsed_s
                    for _ in range(REPEATS)
                )
                name = f"{kind}, dtype {dtype}, length {length or 'by default'}"
                trials_s[name], tried[name] = round(seconds, 4), own
            settings[kind] = tried[min(tried, key=trials_s.__getitem__)]
        versions = {"transformers": transformers.__version__, "torch": str(torch.__version__)}
        self.ready = PeerReady(settings, refused, trials_s, {}, versions)

    def answer(self, order: PeerOrder, settings: Settings) -> Reply:
        """Carry out an order, one prompt after the other."""
        more: dict[str, Any] = {}
        if order.kind == "drafted":
            more["assistant_model"] = self._drafters[settings["dtype"], settings["length"]]
        target = self._targets[settings["dtype"]]
        started = time.perf_counter()
        answers = [self._answer(target, prompt, order.max_tokens, more) for prompt in order.prompts]
        return Reply(answers, time.perf_counter() - started)

    @torch.inference_mode()
    def _answer(
        self, target: Any, prompt: tuple[int, ...], max_tokens: int, more: dict[str, Any]
    ) -> PeerAnswer:
        started, first = time.perf_counter(), FirstTokens()
        rows = torch.tensor([prompt])
        made = target.generate(
            input_ids=rows, attention_mask=torch.ones_like(rows), max_new_tokens=max_tokens,
            do_sample=False, stopping_criteria=[first], **more,
        )  # fmt: skip
        elapsed_s = time.perf_counter() - started
        tokens: list[int] = made[0, len(prompt) :].tolist()
        told = list(itertools.takewhile(lambda token: token not in self._end_tokens, tokens))
        return PeerAnswer(told, (first.at or time.perf_counter()) - started, elapsed_s)

    def _drafter(self, name: str, dtype: str, length: int | None) -> Any:
        """One for each setting: transformers changes its generation settings as it learns."""
        drafter = self._load(name, dtype)
        if length is not None:
            set_draft_length(drafter, length)
        return drafter

    def _load(self, name: str, dtype: str) -> Any:
        path = Path(name)
        where = {"gguf_file": path.name} if path.is_file() else {}
        model: Any = AutoModelForCausalLM.from_pretrained(
            path.parent if where else path, dtype=DTYPES[dtype], **where
        )
        model.generation_config.eos_token_id = sorted(self._end_tokens)
        model.generation_config.pad_token_id = min(self._end_tokens)
        return model.eval()


def main(lines: Iterator[bytes], write: Callable[[bytes], None]) -> None:
    """Serve orders until there is no more input."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    setup = msgspec.json.decode(next(lines), type=Setup)
    torch.set_num_threads(setup.threads)
    peer = TransformersPeer(setup)
    write(msgspec.json.encode(peer.ready) + b"\n")
    for line in lines:
        order = msgspec.json.decode(line, type=PeerOrder)
        reply = peer.answer(order, peer.ready.settings[order.kind])
        write(msgspec.json.encode(reply) + b"\n")


if __name__ == "__main__":
    # What libraries print must not come between the lines.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

        def _write(line: bytes) -> None:
            out.write(line)
            out.flush()

        main(iter(sys.stdin.buffer), _write)
