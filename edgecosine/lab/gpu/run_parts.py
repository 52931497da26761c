"""Runs parts one after another, each with a share of the time. A failed part stops no other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from edgecosine.lab.figures import Notify
from edgecosine.lab.gpu.parts import GpuPart, GpuPlan
from edgecosine.local import child_processes as processes

DONE, FAILED, LATE, LEFT_OUT = "done", "failed", "out of time", "left out"
_LAST_LINES: Final = 40
_PATIENCE_S: Final = 8.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a part ended."""

    part: str
    ended: str
    seconds: float
    reason: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether the part failed or ran out of time."""
        return self.ended in {FAILED, LATE}


async def run_parts(
    parts: Sequence[GpuPart],
    plan: GpuPlan,
    minutes: float,
    environment: Mapping[str, str],
    notify: Notify,
) -> list[Ended]:
    """Run the parts; returns how they ended. `summary.json` is written after each of them."""
    end = time.monotonic() + 60 * minutes
    endings: list[Ended] = []
    for index, part in enumerate(parts):
        shares = [other.share for other in parts[index:] if not other.obstacle(plan)]
        left = max(0.0, end - time.monotonic())
        if obstacle := part.obstacle(plan):
            endings.append(Ended(part.name, LEFT_OUT, 0.0, obstacle))
            notify(f"== {part.name}: left out, {obstacle}")
        else:
            endings.append(
                await _run(part, plan, left * part.share / sum(shares), environment, notify)
            )
        summary = json.dumps([asdict(one) for one in endings], indent=1)
        (plan.out / "summary.json").write_text(summary + "\n", encoding="utf-8")
    return endings


async def _run(
    part: GpuPart,
    plan: GpuPlan,
    limit_s: float,
    environment: Mapping[str, str],
    notify: Notify,
) -> Ended:
    notify(f"== {part.name}: {part.description}, at most {limit_s:.0f} s")
    log = plan.out / f"{part.name}.log"
    log.unlink(missing_ok=True)
    began = time.monotonic()
    child = await processes.spawn(part.command(plan, limit_s), log, env=environment)
    ended, reason = DONE, ""
    try:
        async with asyncio.timeout(limit_s):
            if code := await child.wait():
                ended, reason = FAILED, f"exit code {code}: {_last_lines(log, 1)}"
    except TimeoutError:
        ended, reason = LATE, f"ended after {limit_s:.0f} s"
    finally:
        await _end(child)
    try:
        part.finish(plan)
    except (OSError, ValueError, SyntaxError) as error:  # an XML fault is a SyntaxError
        reason = reason or f"no result: {error}"
        ended = FAILED if ended == DONE else ended
    notify(_last_lines(log, _LAST_LINES))
    return Ended(part.name, ended, round(time.monotonic() - began, 1), reason)


async def _end(child: asyncio.subprocess.Process) -> None:
    """End a child and its process group; nodes of a cluster end with the child."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if child.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await child.wait()


def _last_lines(log: Path, count: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    return "\n".join(lines[-count:])


def table(endings: Sequence[Ended]) -> str:
    """The results of the parts as a table."""
    rows = [("part", "ended", "seconds", "reason")]
    rows += [(one.part, one.ended, f"{one.seconds:.1f}", one.reason) for one in endings]
    return "\n".join(f"{a:8} {b:12} {c:>8}  {d}".rstrip() for a, b, c, d in rows)
