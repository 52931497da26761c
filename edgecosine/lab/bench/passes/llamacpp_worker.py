"""llama.cpp's process: `python llamacpp_worker.py`, in the environment with llama-cpp-python.

This package is not installed there and cannot be imported. `messages.py` defines the messages.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

BATCH = 2048
"""Maximum tokens of a forward pass."""


class Context:
    """A model with a KV cache for some sequences."""

    def __init__(self, model: Any, setup: dict[str, Any], *, flash: bool) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = setup["sessions"] * setup["context"]
        params.n_batch, params.n_ubatch = BATCH, 512
        params.n_seq_max, params.kv_unified = setup["sessions"], False
        params.n_threads = params.n_threads_batch = setup["threads"]
        params.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash
            else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )  # fmt: skip
        self._context = llama_cpp.llama_init_from_model(model, params)
        if self._context is None:
            raise RuntimeError("llama.cpp returned no context")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        self._num_vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def run(self, order: dict[str, Any]) -> list[float]:
        """Seconds of each repetition of an order."""
        tokens, start = order["tokens"], order["start"]
        sessions = range(len(tokens))
        for session in sessions:
            llama_cpp.llama_memory_seq_rm(self._memory, session, -1, -1)
            for at in range(0, start, BATCH):
                part = tokens[session][at : min(start, at + BATCH)]
                self._decode([(token, at + i, session, False) for i, token in enumerate(part)])
        seconds = []
        for _ in range(order["repeats"]):
            for session in sessions:
                llama_cpp.llama_memory_seq_rm(self._memory, session, start, -1)
            seconds.append(self._timed(tokens, order))
        return seconds

    def _timed(self, tokens: list[list[int]], order: dict[str, Any]) -> float:
        start, keeps_all = order["start"], order["keeps_all"]
        rows = [
            (token, position, session, keeps_all or position + 1 == len(each))
            for session, each in enumerate(tokens)
            for position, token in enumerate(each[start:], start)
        ]
        started = time.perf_counter()
        self._decode(rows)
        for step in range(order["steps"]):
            # The batch has one row for each sequence, so the row's index is the sequence's.
            chosen = [int(self._logits(i).argmax()) for i in range(len(tokens))]
            position = start + 1 + step
            self._decode([(token, position, i, True) for i, token in enumerate(chosen)])
        return time.perf_counter() - started

    def _logits(self, index: int) -> Any:
        pointer = llama_cpp.llama_get_logits_ith(self._context, index)
        if not pointer:
            raise RuntimeError(f"llama.cpp has no logits of batch token {index}")
        array = ctypes.c_float * self._num_vocabulary
        return np.ctypeslib.as_array(array.from_address(ctypes.addressof(pointer.contents)))

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, session, is_kept) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, session
            batch.logits[i] = is_kept
        if code := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {code}")
        llama_cpp.llama_synchronize(self._context)


def quantised(source: str, target: str) -> str:
    """Write `source` in Q8_0 to `target`, unless it exists, by llama.cpp's own function; returns
    `target`."""
    if not Path(target).exists():
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, True
        part = f"{target}.new"
        if code := llama_cpp.llama_model_quantize(source.encode(), part.encode(), params):
            raise RuntimeError(f"llama_model_quantize returned {code}")
        Path(part).replace(target)
    return target


def main(lines: Iterator[bytes], write: Callable[[dict[str, Any]], None]) -> None:
    """Answer orders until the input ends."""
    setup = json.loads(next(lines))
    files = {"int8": quantised(setup["source"], setup["int8"]), "int4": setup["source"]}
    contexts: dict[tuple[str, bool], Context] = {}
    for form, path in files.items():
        params = llama_cpp.llama_model_default_params()
        model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        for flash in (False, True):
            contexts[form, flash] = Context(model, setup, flash=flash)
    write({"system": llama_cpp.llama_print_system_info().decode()})
    for line in lines:
        order = json.loads(line)
        write({"seconds": contexts[order["form"], order["flash"]].run(order)})


if __name__ == "__main__":
    # The library's output must not mix with the replies.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(quiet, None)

        def _write(reply: dict[str, Any]) -> None:
            out.write(json.dumps(reply).encode() + b"\n")
            out.flush()

        main(iter(sys.stdin.buffer), _write)
