"""Measured figures, and the JSON format in which all measuring commands write them."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

_HERE = Path(__file__).parent
_RESAMPLES = 2000
_UNITS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")
_PACKAGES = ("torch", "transformers", "aiomqtt", "msgpack", "zeroconf", "uvloop", "bitsandbytes")


LEAST_SAMPLES = 5
"""With fewer samples no interval is given."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A value of `n` samples with its 95% interval. With too few samples for an interval, `raw` has
    all of them. A count has no `n` and is its own interval. `p` is the p value of a paired
    permutation test of "better than", if one was made."""

    value: float
    low: float | None
    high: float | None
    unit: str
    n: int | None = None
    p: float | None = None
    raw: tuple[float, ...] = ()

    def __str__(self) -> str:
        return self.text()

    def text(self, digits: int = 2) -> str:
        """The value, with its interval and number of samples if there are any; few samples are
        listed instead."""
        if self.raw:
            return f"runs: {', '.join(f'{sample:.{digits}f}' for sample in self.raw)}"
        value = f"{self.value:.{digits}f}"
        if self.n is None:
            return value
        if self.low is None or self.high is None:
            return f"{value} (n = {self.n})"
        p = "" if self.p is None else f", p = {self.p:.3f}"
        return f"{value} ({self.low:.{digits}f} to {self.high:.{digits}f}, n = {self.n}{p})"


Notify = Callable[[str], None]
"""Receives a line of progress of a measurement."""


class Keep(Protocol):
    """Writes the report again after each part of a long measurement."""

    def __call__(
        self, figures: Mapping[str, Figure], runs: Sequence[Any], **environment: Any
    ) -> None:
        """`environment` is added to that of the report."""


def counted(value: float, unit: str) -> Figure:
    """A figure that was counted, or measured once."""
    return Figure(value, value, value, unit)


def interval(
    samples: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = statistics.median,
    unit: str = "ratio",
) -> Figure:
    """A statistic of `samples` with its interval by the seeded percentile bootstrap."""
    return joint_interval(statistic, samples, unit=unit)


def joint_interval(
    statistic: Callable[..., float], *groups: Sequence[float], unit: str = "ratio"
) -> Figure:
    """A statistic of several groups of samples with its interval; groups are resampled alone."""
    value, n = statistic(*groups), min(map(len, groups))
    if n < LEAST_SAMPLES:
        raw = tuple(groups[0]) if len(groups) == 1 else ()
        return Figure(value, None, None, unit, n, raw=raw)
    rng = random.Random(0)
    drawn = [
        statistic(*(rng.choices(group, k=len(group)) for group in groups))
        for _ in range(_RESAMPLES)
    ]
    low, high = np.percentile(drawn, (2.5, 97.5), method="higher")
    return Figure(value, float(low), float(high), unit, n)


def keeping(path: Path | None, **environment: Any) -> Keep:
    """A callback that saves the parts of a long measurement, so that an interrupted one keeps its
    results; without a path it does nothing."""

    def keep(figures: Mapping[str, Figure], runs: Sequence[Any], **more: Any) -> None:
        if path is not None:
            write_report(path, figures, runs, **environment, **more)

    return keep


def write_report(
    path: Path, figures: Mapping[str, Figure], runs: Sequence[Any], **environment: Any
) -> None:
    """Write figures, environment and records atomically as JSON, one line per record."""
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
    """The environment of a measurement: processor, its vector units, number of usable cores,
    package versions, commit of this code, and whether the files differ from the commit."""
    flags, changed = _cpuinfo("flags").split(), git_output(_HERE, "status", "--porcelain")
    return {
        "cpu": _cpuinfo("model name"),
        "cpu_units": [unit for unit in _UNITS if unit in flags],
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": git_output(_HERE, "rev-parse", "--short", "HEAD"),
        "dirty": None if changed is None else bool(changed),
    }


def _version(package: str) -> str | None:
    """Version of a package; None when it is not installed."""
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


def git_output(folder: Path, *words: str) -> str | None:
    """Output of a git command in a folder; None when it fails, or when there is no git."""
    command = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
