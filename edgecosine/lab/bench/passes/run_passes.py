"""`edgecosine bench engine --model NAME`: compares forward passes with llama.cpp's on one file.

Both have the same number of threads. All forms of weights and llama.cpp take turns within a
repetition.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer

from edgecosine import models, zoo
from edgecosine.engine.cpu.kernel_library import COMPILERS
from edgecosine.engine.loading.gguf_file import EMBEDDING, GgufModel
from edgecosine.engine.loading.sources import locate
from edgecosine.engine.options import Weights
from edgecosine.errors import LabError
from edgecosine.lab.bench.passes import figures as cells
from edgecosine.lab.bench.passes.figures import pass_figures, verdicts
from edgecosine.lab.bench.passes.messages import Order, PassSetup, Ready, Times
from edgecosine.lab.bench.passes.ours import OurDrafter, OurEngine
from edgecosine.lab.bench.peers.environment import llamacpp_directory, llamacpp_python
from edgecosine.lab.distill.prompts import HELD_OUT
from edgecosine.lab.engine_calls import quiet_transformers
from edgecosine.lab.figures import Keep, Notify
from edgecosine.lab.line_process import LineProcess, line_process

SESSIONS: Final = 8
CONTEXT: Final = 640
START: Final = 100
"""Tokens of a sequence in the cache, except for the prompt's cell."""
PROMPT: Final = 512
GENERATED: Final = 24
AT_ONCE: Final = 3
"""Number of times that a pass is timed in a turn; the shortest one counts."""
FORMS: Final[tuple[Weights, ...]] = ("int8", "int4", "bfloat16")
THEIRS: Final = ("int8", "int4")
WORKER: Final = Path(__file__).with_name("llamacpp_worker.py")
PEAK: Final = Path(__file__).with_name("peak.cpp")


@dataclass(frozen=True, slots=True)
class PassLoad:
    """A load: `sessions` sequences, each with `width` tokens in the timed pass."""

    name: str
    sessions: int
    width: int
    start: int = START
    keeps_all: bool = True
    steps: int = 0

    def order(self, tokens: Sequence[int], form: str, *, flash: bool) -> Order:
        """The passes to time; every session has different tokens."""
        length = self.start + self.width
        sequences = [list(tokens[s * 7 : s * 7 + length]) for s in range(self.sessions)]
        repeats = 1 if self.steps else AT_ONCE
        return Order(form, flash, sequences, self.start, self.keeps_all, self.steps, repeats)


CELLS: Final = (
    PassLoad(cells.ROW, 1, 1),
    PassLoad(cells.EIGHT_ROWS, 1, 8),
    PassLoad(cells.MANY_ROWS, SESSIONS, 8),
    PassLoad(cells.PLAIN, SESSIONS, 1, steps=GENERATED),
    PassLoad(cells.PREFILL, 1, PROMPT, start=0, keeps_all=False),
)


async def run_passes(
    model: str, repeats: int, threads: int, notify: Notify, keep: Keep
) -> list[str]:
    """Load and measure; returns a line for each bar. Runs are saved after each repetition.

    Raises LabError when the model is not a GGUF file, or when llama.cpp's process fails.
    """
    quiet_transformers()
    path = models.obtain(model) or Path(model)
    if not path.is_file():
        raise LabError(f"{model} is not a GGUF file: use one of {', '.join(models.CATALOGUE)}")
    bench = _Bench(path.resolve(), model, threads, notify)
    python = llamacpp_python(notify)
    async with line_process("llama.cpp", (str(python), str(WORKER))) as process:
        notify("llama.cpp loads the model, in 8 bits and as it is")
        setup = PassSetup(str(bench.path), str(bench.int8), SESSIONS, CONTEXT, threads)
        ready = await process.ask(setup, Ready)
        bench.load()
        runs = bench.perplexities()
        flash = await bench.quickest(process)
        for repeat in range(repeats):
            runs += await bench.repetition(repeat, process, flash)
            # The loop that measures the peak uses one core.
            found = pass_figures(runs, bench.products_per_row // threads)
            keep(found, runs, model=model, llamacpp=ready.system, flash=flash)
            notify(f"repetition {repeat + 1} of {repeats}")
    for name, figure in found.items():
        notify(f"{name}: {figure} {figure.unit}")
    return verdicts(found)


class _Bench:
    """The target in all forms of weights and a drafter, and the cells to measure."""

    def __init__(self, path: Path, model: str, threads: int, notify: Notify) -> None:
        self.path, self._model, self._threads, self._notify = path, model, threads, notify
        self.int8 = llamacpp_directory().with_name(f"{path.stem}.Q8_0.gguf")
        tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        self._texts = [
            tokenizer.encode("\n\n".join(each))[:PROMPT] for each in zoo.prompts().values()
        ]
        prompts: dict[str, list[str]] = json.loads(HELD_OUT.read_text())
        text = " ".join(itertools.chain.from_iterable(prompts.values()))
        self._tokens: list[int] = tokenizer.encode(text)
        self._ours: dict[str, OurEngine] = {}
        self._drafter: OurDrafter | None = None
        gguf = locate(str(path), "").gguf
        assert gguf is not None
        self.products_per_row = _products_per_row(gguf)
        self._is_small = gguf.main_format.startswith("Q4_")

    def load(self) -> None:
        """Load the target in all forms, from the Q8_0 file or the model's own, and a drafter."""
        for form in FORMS:
            self._notify(f"loading the target in {form}")
            path = self.int8 if form == "int8" else self.path
            # In a file of 4 bits, "auto" keeps the matrices that have more bits.
            weights: Weights = "auto" if form == "int4" and self._is_small else form
            self._ours[form] = OurEngine(
                str(path), weights, sessions=SESSIONS, context=CONTEXT, threads=self._threads
            )
        if (drafter := f"{self._model}/generalist") in models.names():
            self._drafter = OurDrafter(drafter, SESSIONS, self._threads)

    def perplexities(self) -> list[dict[str, Any]]:
        """A run with the perplexity of each form."""
        return [
            {"engine": form, "perplexity": engine.perplexity(self._texts)}
            for form, engine in self._ours.items()
        ]

    async def quickest(self, process: LineProcess) -> dict[str, bool]:
        """Whether llama.cpp is faster with flash attention, by the name of the cell."""
        chosen = {}
        for cell in CELLS:
            seconds = {}
            for flash in (False, True):
                order = cell.order(self._tokens, "int8", flash=flash)
                seconds[flash] = min((await process.ask(order, Times)).seconds)
            chosen[cell.name] = seconds[True] < seconds[False]
        return chosen

    async def repetition(
        self, repeat: int, process: LineProcess, flash: dict[str, bool]
    ) -> list[dict[str, Any]]:
        """The runs of all engines in all cells, and of the drafter."""
        runs: list[dict[str, Any]] = [{"engine": "peak", "repeat": repeat} | _peak()]
        for cell in CELLS:
            order = cell.order(self._tokens, "int8", flash=flash[cell.name])
            found = {form: engine.run(order) for form, engine in self._ours.items()}
            for form in THEIRS:
                order = cell.order(self._tokens, form, flash=flash[cell.name])
                times = await process.ask(order, Times)
                found[f"{cells.LLAMACPP} {form}"] = times.seconds
            runs += [
                {"engine": engine, "cell": cell.name, "repeat": repeat, "seconds": seconds}
                for engine, seconds in found.items()
            ]
        return runs + self._drafts(repeat)

    def _drafts(self, repeat: int) -> list[dict[str, Any]]:
        if self._drafter is None:
            return []
        prompts = [self._tokens[s * 7 : s * 7 + START] for s in range(SESSIONS)]
        runs = []
        for cell, some in ((cells.DRAFT, prompts[:1]), (cells.DRAFTS, prompts)):
            seconds = [self._drafter.run(some) for _ in range(AT_ONCE)]
            run = {"engine": cells.DRAFTER, "cell": cell, "repeat": repeat, "seconds": seconds}
            runs.append(run)
        return runs


def _peak() -> dict[str, Any]:
    """Products per second of a loop of the instruction by which the kernels multiply bytes."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise LabError("no C++ compiler found; install g++")
    with tempfile.TemporaryDirectory(prefix="edgecosine-") as directory:
        built = str(Path(directory) / "peak")
        subprocess.run([compiler, "-O3", "-march=native", str(PEAK), "-o", built], check=True)
        done = subprocess.run([built], check=True, capture_output=True)
    return {"products_per_s": float(done.stdout)}


def _products_per_row(gguf: GgufModel) -> int:
    """Products of all linear layers for a token, including the output layer."""
    matrices = [t for t in gguf.weights if len(t.shape) == 2 and t.name != EMBEDDING]
    if gguf.is_tied:
        matrices += [t for t in gguf.weights if t.name == EMBEDDING]
    return sum(tensor.num_elements for tensor in matrices)
