"""Time that outlives a process: measures how long ago something happened, also after a restart.

Wall clocks are stepped. Within one boot the machine's own clock counts, which includes sleep and
cannot be set. Across boots, or on another machine, the wall clock is used.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class BootTime:
    """A moment: `wall_s` in seconds since 1970, `boot_s` in seconds since the boot `boot`."""

    wall_s: float
    boot: str
    boot_s: float

    @classmethod
    def now(cls) -> Self:
        """Return this moment on this machine."""
        return cls(time.time(), _boot(), _boot_s())

    def since(self, earlier: BootTime) -> float:
        """Return the seconds from `earlier` to this moment, at least 0: clocks are set back."""
        if self.boot and self.boot == earlier.boot:
            return max(0.0, self.boot_s - earlier.boot_s)
        return max(0.0, self.wall_s - earlier.wall_s)


@cache
def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _boot_s() -> float:
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)
