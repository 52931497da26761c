"""transformers as one more server: the child process of `stock.py`, on the target's cores."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec

from edgecosine.errors import LabError
from edgecosine.lab.asking import Asked
from edgecosine.lab.bench.stock_orders import Answer, Kind, Order, Ready
from edgecosine.lab.load import Job, Load
from edgecosine.lab.network.hosts import pinned
from edgecosine.node import processes

MAX_LINE_BYTES = 1 << 22

Value = TypeVar("Value")


class StockProcess:
    """Answers jobs as transformers does."""

    def __init__(self, process: asyncio.subprocess.Process, ready: Ready) -> None:
        self._process = process
        self.ready = ready
        """The settings that it found to be quickest, and what all of them took."""

    async def answer(self, kind: Kind, jobs: Sequence[Job], batch: int) -> Load:
        """Answer the jobs greedily, so many at a time; their sampling is not looked at.

        Raises LabError when the process has ended.
        """
        waiting, asked, started = iter(jobs), list[Asked](), time.perf_counter()
        while together := list(itertools.islice(waiting, batch)):
            order = Order(
                kind=kind,
                domains=tuple(job.domain for job in together),
                prompts=tuple(job.prompt for job in together),
                max_tokens=together[0].max_tokens,
            )
            begun = time.perf_counter()
            assert self._process.stdin is not None
            self._process.stdin.write(msgspec.json.encode(order) + b"\n")
            answers = await _read(self._process, list[Answer])
            elapsed_s = time.perf_counter() - begun
            asked += [
                _asked(job, answer, elapsed_s)
                for job, answer in zip(together, answers, strict=True)
            ]
        return Load(tuple(asked), (), time.perf_counter() - started)


@asynccontextmanager
async def stock_process(ballast: int, cores: str) -> AsyncIterator[StockProcess]:
    """The process, ready for work; it ends with the block.

    Raises LabError when it does not start.
    """
    command = (sys.executable, "-m", "edgecosine.lab.bench.stock", str(ballast))
    process = await asyncio.create_subprocess_exec(
        *pinned(command, cores),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES,
        start_new_session=True,
    )
    try:
        yield StockProcess(process, await _read(process, Ready))
    finally:
        await processes.stop(process)


async def _read(process: asyncio.subprocess.Process, kind: type[Value]) -> Value:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise LabError("transformers' process has ended; its words are above")
    return msgspec.json.decode(line, type=kind)


def _asked(job: Job, answer: Answer, elapsed_s: float) -> Asked:
    return Asked(
        domain=job.domain,
        policy=job.policy,
        text=answer.text,
        num_tokens=answer.num_tokens,
        elapsed_s=elapsed_s,
        first_text_s=answer.first_text_s,
        queue_s=0.0,
        prefill_s=answer.first_text_s,
        acceptance_histogram=(0,),
        drafters={},
        plan="",
    )
