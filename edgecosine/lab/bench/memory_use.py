"""Measures the peak memory of a model's load and rounds in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgecosine import zoo
from edgecosine.engine.base import TargetEngine, VerifyWork
from edgecosine.engine.loading.load import load_target
from edgecosine.engine.options import Loaded, LoadOptions
from edgecosine.engine.process_memory import give_back_memory
from edgecosine.lab.engine_calls import forked_tree, prefill
from edgecosine.protocol.api.request import Sampling

_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Sizes in bytes. Peaks are growth over `base`, the size of the process after it has loaded and
    run a model of 1 M parameters, so they exclude the libraries' code."""

    base: int
    load_peak: int
    peak: int
    """Peak of load and rounds together."""
    weights: int
    """Size in memory: packed, with the embedding in addition to the output layer."""
    cache: int
    planned: int

    @property
    def over_ideal(self) -> float:
        """Peak growth over weights + cache."""
        return self.peak / (self.weights + self.cache)


def measure_memory(options: LoadOptions, rounds: int) -> MemoryUse:
    """Load and run a target in a fresh process. Linux only: peaks come from /proc.

    Raises subprocess.CalledProcessError when the process fails.
    """
    program = f"import {__name__} as m; m.measure_here()"
    order = json.dumps({"options": asdict(options), "rounds": rounds})
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=order, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S,
    )  # fmt: skip
    return MemoryUse(**json.loads(done.stdout.splitlines()[-1]))


def measure_here() -> None:
    """Entry point of the measuring process: read an order from standard input, print the result."""
    order: dict[str, Any] = json.load(sys.stdin)
    options = LoadOptions(**order["options"])
    _run(*load_target(LoadOptions(zoo.drafter_names()[0], threads=1, slots=1, context=64)), 2)
    give_back_memory()
    # Resets the peak to the current use.
    Path("/proc/self/clear_refs").write_text("5")
    base = _status("VmRSS")
    engine, loaded = load_target(options)
    load_peak = _status("VmHWM") - base
    _run(engine, loaded, order["rounds"])
    peak = _status("VmHWM") - base
    use = MemoryUse(base, load_peak, peak, loaded.weights, loaded.cache, loaded.planned)
    print(json.dumps(asdict(use)))


def memory_in_use() -> int:
    """Resident bytes of this process."""
    return _status("VmRSS")


def _run(engine: TargetEngine, loaded: Loaded, rounds: int) -> None:
    """Fill one slot after another up to the context."""
    for number in range(rounds):
        work = _work(number, loaded.max_context)
        prefill(engine, [work])


def _work(key: int, context: int) -> VerifyWork:
    """A sequence that fills the context, and a fork of four nodes at its end."""
    tokens = (1 + key % 7,) * (context - 4)
    return VerifyWork(str(key), tokens, len(tokens), forked_tree((1, 2), (3, 4)), Sampling())


def _status(field: str) -> int:
    """A size from /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return int(values[field].split()[0]) * 1024
