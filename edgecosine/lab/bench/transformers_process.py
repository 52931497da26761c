"""transformers as a server for comparison: a child process on the target's cores."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from edgecosine.lab.bench.transformers_messages import (
    Kind,
    TransformersAnswer,
    TransformersOrder,
    TransformersReady,
)
from edgecosine.lab.line_process import LineProcess, line_process
from edgecosine.lab.measured_requests import Load, LoadRequest, MeasuredAnswer


class StockProcess:
    """Answers requests by transformers."""

    def __init__(self, process: LineProcess, ready: TransformersReady) -> None:
        self._process = process
        self.ready = ready
        """The fastest settings, and the trial seconds of all settings."""

    async def answer(self, kind: Kind, jobs: Sequence[LoadRequest], batch: int) -> Load:
        """Answer the requests greedily, `batch` at a time; their sampling is ignored.

        Raises LabError when the process has ended.
        """
        waiting, measured, started = iter(jobs), list[MeasuredAnswer](), time.perf_counter()
        while together := list(itertools.islice(waiting, batch)):
            order = TransformersOrder(
                kind=kind,
                domains=tuple(job.domain for job in together),
                prompts=tuple(job.prompt for job in together),
                max_tokens=together[0].max_tokens,
            )
            begun = time.perf_counter()
            answers = await self._process.ask(order, list[TransformersAnswer])
            elapsed_s = time.perf_counter() - begun
            measured += [
                MeasuredAnswer(
                    job.domain, job.policy, answer.text, num_tokens=answer.num_tokens,
                    elapsed_s=elapsed_s, first_text_s=answer.first_text_s,
                    prefill_s=answer.first_text_s,
                )
                for job, answer in zip(together, answers, strict=True)
            ]  # fmt: skip
        return Load(tuple(measured), (), time.perf_counter() - started)


@asynccontextmanager
async def stock_process(
    ballast: int, cores: str, chosen: TransformersReady | None = None
) -> AsyncIterator[StockProcess]:
    """Start the process with settings that were `chosen` before, or let it choose them.

    The process ends with the block.

    Raises LabError when it does not start.
    """
    worker = "edgecosine.lab.bench.transformers_worker"
    known = () if chosen is None else (msgspec.json.encode(chosen).decode(),)
    command = (sys.executable, "-m", worker, str(ballast), *known)
    async with line_process("transformers", command, cores) as process:
        yield StockProcess(process, await process.read(TransformersReady))
