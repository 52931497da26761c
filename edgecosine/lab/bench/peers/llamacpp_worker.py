"""llama.cpp's process: `python llamacpp_worker.py`, in the environment with llama-cpp-python.

This package is not installed there and cannot be imported. `messages.py` defines the messages.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import llama_cpp
import numpy as np
from llama_cpp.llama_speculative import LlamaDraftModel

DRAFTS = tuple((length, least) for length in (2, 3, 5, 8) for least in (0.0, 0.5))
"""Numbers of draft tokens to try, with the probability below which a draft ends."""
BATCH = 2048
"""Maximum tokens of a forward pass."""
REPEATS = 2
ONE_BY_ONE = 4
"""Number of trial prompts for answers one at a time; batches are tried with all prompts."""

FAILURES = (RuntimeError, ValueError, AttributeError, TypeError, OSError)
"""Exceptions that llama-cpp-python raises for unsupported settings."""

Answer = dict[str, Any]
Settings = dict[str, Any]
Method = Callable[[Sequence[Sequence[int]], int], list[Answer]]
"""Answers prompts with at most a given number of tokens each."""
Make = Callable[[], Method]


class Generator:
    """`Llama.generate`, one prompt after another; it caches the common prefix with the last."""

    def __init__(self, llama: Any, end_tokens: frozenset[int]) -> None:
        self._llama, self._end_tokens = llama, end_tokens

    def __call__(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Answer]:
        return [self._answer(prompt, max_tokens) for prompt in prompts]

    def _answer(self, prompt: Sequence[int], max_tokens: int) -> Answer:
        started, first_s, tokens = time.perf_counter(), 0.0, list[int]()
        generated = self._llama.generate(list(prompt), temp=0.0, repeat_penalty=1.0)
        for token in itertools.islice(generated, max_tokens):
            first_s = first_s or time.perf_counter() - started
            if token in self._end_tokens:
                break
            tokens.append(int(token))
        return _answer(tokens, first_s, time.perf_counter() - started)


class ModelDrafter(LlamaDraftModel):  # type: ignore[misc]
    """A draft model for `Llama(draft_model=…)`: a second model, decoding greedily. The common
    prefix with its last text stays in its KV cache."""

    def __init__(self, llama: Any) -> None:
        self._llama = llama
        self.length, self.least = DRAFTS[0]

    def __call__(self, input_ids: Any, /, **_: Any) -> Any:
        """Draft tokens that continue `input_ids`, as an array of int32."""
        llama = self._llama
        known = llama.input_ids[: min(llama.n_tokens, len(input_ids) - 1)]
        differs = np.flatnonzero(known != input_ids[: len(known)])
        # Evaluation drops cache entries behind `n_tokens`.
        llama.n_tokens = int(differs[0]) if len(differs) else len(known)
        fed, drafted = input_ids[llama.n_tokens :].tolist(), list[int]()
        while len(drafted) < self.length and llama.n_tokens + len(fed) < llama.n_ctx():
            llama.eval(fed)
            logits = _logits(llama.ctx, -1, llama.n_vocab())
            token = int(logits.argmax())
            if self.least and 1 / np.exp(logits - logits[token]).sum() < self.least:
                break
            drafted.append(token)
            fed = [token]
        return np.array(drafted, dtype=np.intc)


class BatchToken(NamedTuple):
    """A token of a forward pass."""

    token: int
    position: int
    sequence: int
    is_last: bool
    """Whether its logits are needed."""


class Running:
    """A running prompt of a batch."""

    def __init__(self, number: int, prompt: Sequence[int], kept: int) -> None:
        """`kept`: number of prompt tokens in the slot's KV cache."""
        self.number, self.prompt, self.position = number, list(prompt), kept
        self.fed = self.prompt[kept:]
        self.tokens: list[int] = []
        self.first_s = 0.0

    def pending(self, slot: int) -> list[BatchToken]:
        """Tokens of the next forward pass."""
        last = len(self.fed) - 1
        return [BatchToken(t, self.position + i, slot, i == last) for i, t in enumerate(self.fed)]


class Batch:
    """Sequences that share forward passes; when one ends, the next prompt gets its slot."""

    def __init__(
        self, llama: Any, setup: dict[str, Any], *, num_slots: int, flash: bool, unified: bool
    ) -> None:
        self._end_tokens = frozenset(setup["end_tokens"])
        self._num_slots, self._num_vocabulary = num_slots, llama.n_vocab()
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = num_slots * setup["context"]
        params.n_batch, params.n_ubatch = BATCH, 512
        params.n_seq_max, params.kv_unified = num_slots, unified
        params.n_threads = params.n_threads_batch = setup["threads"]
        kinds = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED, llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.flash_attn_type = kinds[flash]
        self._llama = llama  # owns the model
        self._kept: list[list[int]] = [[] for _ in range(num_slots)]
        """The last prompt of each slot."""
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._context = llama_cpp.llama_init_from_model(llama.model, params)
        if self._context is None:
            raise RuntimeError("llama.cpp returned no context for a batch")
        self._memory = llama_cpp.llama_get_memory(self._context)

    def __del__(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        if self._context is not None:
            llama_cpp.llama_free(self._context)

    def __call__(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Answer]:
        started, answers = time.perf_counter(), dict[int, Answer]()
        waiting, running = deque(enumerate(prompts)), dict[int, Running]()
        while waiting or running:
            self._admit(waiting, running)
            batch = [token for slot, s in running.items() for token in s.pending(slot)]
            generated = self._forward(batch)
            now_s = time.perf_counter() - started
            for slot, token in generated:
                sequence = running[slot]
                sequence.first_s = sequence.first_s or now_s
                sequence.position += len(sequence.fed)
                sequence.fed = [token]
                is_end = token in self._end_tokens
                if not is_end:
                    sequence.tokens.append(token)
                if is_end or len(sequence.tokens) == max_tokens:
                    answers[sequence.number] = _answer(sequence.tokens, sequence.first_s, now_s)
                    self._kept[slot] = sequence.prompt
                    del running[slot]
        return [answers[number] for number in range(len(prompts))]

    def _admit(self, waiting: deque[Any], running: dict[int, Running]) -> None:
        """Assign the next prompts to free slots, up to the size of a forward pass."""
        room = BATCH - len(running)
        free = (slot for slot in range(self._num_slots) if slot not in running)
        while waiting and len(waiting[0][1]) <= room and (slot := next(free, None)) is not None:
            number, prompt = waiting.popleft()
            # The common prefix with the slot's last prompt stays in the KV cache.
            same = itertools.takewhile(
                lambda pair: pair[0] == pair[1], zip(self._kept[slot], prompt[:-1], strict=False)
            )
            kept = sum(1 for _ in same)
            llama_cpp.llama_memory_seq_rm(self._memory, slot, kept, -1)
            running[slot] = Running(number, prompt, kept)
            room -= len(running[slot].fed)

    def _forward(self, tokens: Sequence[BatchToken]) -> list[tuple[int, int]]:
        """Run a forward pass; returns slot and next token of each sequence."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token.token, token.position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, token.sequence
            batch.logits[i] = token.is_last
        if code := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {code}")
        return [
            (token.sequence, int(_logits(self._context, i, self._num_vocabulary).argmax()))
            for i, token in enumerate(tokens)
            if token.is_last
        ]


def drafted(generator: Generator, drafter: ModelDrafter, length: int, p_min: float) -> Method:
    """A method that answers with these settings of the generator's draft model."""

    def answer(prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Answer]:
        drafter.length, drafter.least = length, p_min
        return generator(prompts, max_tokens)

    return answer


class Peer:
    """All kinds of answers, each with its fastest settings on this machine."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup = setup
        self._end_tokens = frozenset[int](setup["end_tokens"])
        self._loaded = dict[tuple[str, bool], Any]()
        self.methods = dict[str, Method]()
        self.settings = dict[str, dict[str, Any]]()
        self.refused = dict[str, str]()
        self.trials_s = dict[str, float]()
        self.failed = dict[str, str]()
        self._choose("plain", self._plain())
        if setup["drafter"] is None:
            self.refused["drafted"] = "there is no draft model"
        else:
            self._choose("drafted", self._drafted())
        self._choose("batched", self._batched())

    def _plain(self) -> Iterator[tuple[Settings, Make]]:
        """`Llama.generate`, and direct forward passes without its sampler."""
        for flash in (False, True):
            yield (
                {"api": "generate", "flash_attn": flash},
                functools.partial(self._generator, self._setup["target"], flash),
            )
            yield (
                {"api": "llama_decode", "flash_attn": flash},
                functools.partial(self._batch, num_slots=1, flash=flash, unified=True),
            )

    def _drafted(self) -> Iterator[tuple[Settings, Make]]:
        flash = self.settings.get("plain", {}).get("flash_attn", False)
        drafter = ModelDrafter(self._load(self._setup["drafter"], flash))
        generator = self._generator(self._setup["target"], flash, drafter)
        for length, p_min in DRAFTS:
            yield (
                {"length": length, "p_min": p_min, "flash_attn": flash},
                functools.partial(drafted, generator, drafter, length, p_min),
            )

    def _batched(self) -> Iterator[tuple[Settings, Make]]:
        """One batch, or one prompt after another if that is faster."""
        num_slots = self._setup["at_once"]
        for flash, unified in itertools.product((False, True), (True, False)):
            yield (
                {"api": "llama_decode", "flash_attn": flash, "kv_unified": unified},
                functools.partial(self._batch, num_slots=num_slots, flash=flash, unified=unified),
            )
        if "plain" in self.methods:
            yield {"api": "one by one"}, lambda: self.methods["plain"]

    def _generator(self, path: str, flash: bool, draft_model: Any = None) -> Generator:
        return Generator(self._load(path, flash, draft_model), self._end_tokens)

    def _batch(self, *, num_slots: int, flash: bool, unified: bool) -> Method:
        llama = self._load(self._setup["target"], flash)
        return Batch(llama, self._setup, num_slots=num_slots, flash=flash, unified=unified)

    def _load(self, path: str, flash: bool, draft_model: Any = None) -> Any:
        key = (path, flash)
        if draft_model is None and key in self._loaded:
            return self._loaded[key]
        threads = self._setup["threads"]
        llama = llama_cpp.Llama(
            path, n_ctx=self._setup["context"], n_threads=threads, n_threads_batch=threads,
            flash_attn=flash, draft_model=draft_model, verbose=False,
        )  # fmt: skip
        if draft_model is None:
            self._loaded[key] = llama
        return llama

    def _choose(self, kind: str, candidates: Iterator[tuple[Settings, Make]]) -> None:
        """Try all settings on the trial prompts and keep the fastest."""
        best_s, reason = math.inf, ""
        try:
            for options, make in candidates:
                name = ", ".join((kind, *(f"{key} {value}" for key, value in options.items())))
                try:
                    method = make()
                    seconds = min(self._seconds(method, kind) for _ in range(REPEATS))
                except FAILURES as error:
                    reason = self.failed[name] = f"{type(error).__name__}: {error}"
                    continue
                self.trials_s[name] = round(seconds, 4)
                if seconds < best_s:
                    best_s, self.methods[kind], self.settings[kind] = seconds, method, options
        except FAILURES as error:  # raised for all candidates
            reason = f"{type(error).__name__}: {error}"
        if kind not in self.methods:
            self.refused[kind] = reason

    def _seconds(self, method: Method, kind: str) -> float:
        prompts = self._setup["trial_prompts"][: None if kind == "batched" else ONE_BY_ONE]
        started = time.perf_counter()
        method(prompts, self._setup["trial_tokens"])
        return time.perf_counter() - started


def _logits(context: Any, index: int, num_vocabulary: int) -> Any:
    pointer = llama_cpp.llama_get_logits_ith(context, index)
    if not pointer:
        raise RuntimeError(f"llama.cpp has no logits of batch token {index}")
    array = ctypes.c_float * num_vocabulary
    return np.ctypeslib.as_array(array.from_address(ctypes.addressof(pointer.contents)))


def _answer(tokens: list[int], first_s: float, elapsed_s: float) -> Answer:
    return {"tokens": tokens, "first_token_s": first_s, "elapsed_s": elapsed_s}


def _answer_order(peer: Peer, order: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        answers = peer.methods[order["kind"]](order["prompts"], order["max_tokens"])
    except (*FAILURES, KeyError) as error:
        return {"answers": [], "elapsed_s": 0.0, "error": f"{type(error).__name__}: {error}"}
    return {"answers": answers, "elapsed_s": time.perf_counter() - started}


def main(lines: Iterator[bytes], write: Callable[[dict[str, Any]], None]) -> None:
    """Answer orders until the input ends."""
    peer = Peer(json.loads(next(lines)))
    version = metadata.version("llama_cpp_python")
    system = llama_cpp.llama_print_system_info().decode()
    write({
        "settings": peer.settings, "refused": peer.refused, "trials_s": peer.trials_s,
        "failed": peer.failed, "versions": {"llama-cpp-python": version, "system": system},
    })  # fmt: skip
    for line in lines:
        write(_answer_order(peer, json.loads(line)))


if __name__ == "__main__":
    # The library's output must not mix with the replies.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

        def _write(reply: dict[str, Any]) -> None:
            out.write(json.dumps(reply).encode() + b"\n")
            out.flush()

        main(iter(sys.stdin.buffer), _write)
