"""Measured figures and the one shape in which every measuring command writes them."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

_RESAMPLES = 2000
_UNITS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")
_PACKAGES = ("torch", "transformers", "aiomqtt", "msgpack", "zeroconf", "uvloop", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float
    unit: str


def interval(
    samples: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = statistics.median,
    unit: str = "ratio",
) -> Figure:
    """A statistic of `samples`, its interval by the percentile bootstrap (seeded)."""
    chance = random.Random(0)
    drawn = sorted(statistic(chance.choices(samples, k=len(samples))) for _ in range(_RESAMPLES))
    low, high = drawn[int(0.025 * _RESAMPLES)], drawn[int(0.975 * _RESAMPLES)]
    return Figure(statistic(samples), low, high, unit)


def write_report(
    path: Path, figures: dict[str, Figure], runs: Sequence[Any], **environment: Any
) -> None:
    """Write figures, environment and raw records as JSON, a line each; all of the file or none."""
    parts = {
        "figures": {name: asdict(figure) for name, figure in figures.items()},
        "environment": {**machine(), **environment},
    }
    head = "".join(
        f"{json.dumps(key)}: {json.dumps(part, indent=1)},\n" for key, part in parts.items()
    )
    lines = ",\n".join(json.dumps(run) for run in runs)
    written = path.with_name(f"{path.name}.new")
    written.write_text(f'{{\n{head}"runs": [\n{lines}\n]\n}}\n')
    written.replace(path)


def machine() -> dict[str, Any]:
    """Processor, its vector units, cores, versions and commit."""
    flags = _cpuinfo("flags").split()
    return {
        "cpu": _cpuinfo("model name"),
        "cpu_units": [unit for unit in _UNITS if unit in flags],
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    """None where it is not installed: not every measurement needs all of them."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() if key == "model name" else ""
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith(key)), "?")


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
