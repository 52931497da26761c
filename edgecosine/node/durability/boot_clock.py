"""Moments that outlive a process: how long ago something was, also after a restart.

Wall clocks are stepped. Within one boot of a machine its own clock counts, which goes on while it
sleeps and cannot be set; only across boots, or on another machine, is the wall clock believed.
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
    """`wall_s` in seconds since 1970, `boot_s` since the machine's boot `boot`."""

    wall_s: float
    boot: str
    boot_s: float

    @classmethod
    def now(cls) -> Self:
        """This moment, here."""
        return cls(time.time(), _boot(), _boot_s())

    def since(self, earlier: BootTime) -> float:
        """Seconds that have passed; never below 0, for a clock that was set back tells nothing."""
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
