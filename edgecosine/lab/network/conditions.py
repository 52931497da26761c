"""Network conditions: delay, jitter, loss, duplication and rate, as pure arithmetic.

Each host has one cable. A cable has two lanes, one each way, and a lane keeps the order of its
frames, as a real one does. The module uses no sockets and no clock.
"""

from __future__ import annotations

import math
import random

import msgspec

from edgecosine.errors import ConfigError

LONGEST_QUEUE_S = 0.2
"""Frames that would wait longer for a slow lane are dropped, as by a switch with a full buffer."""

_BITS_PER_MEGABIT = 1e6


class NetworkConditions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Conditions of one cable, the same in both directions.

    A host at `delay_ms` from the hub has a round trip of 2 * delay_ms to a host with an ideal one.
    Raises ConfigError for impossible values.
    """

    delay_ms: float = 0.0
    """Delay in one direction."""
    jitter_ms: float = 0.0
    """Each frame's delay is drawn from delay_ms - jitter_ms to delay_ms + jitter_ms."""
    loss: float = 0.0
    """Share of frames that never arrive, 0 to 1."""
    rate_mbps: float | None = None
    """Megabits per second; None: unlimited."""
    duplication: float = 0.0
    """Share of the delivered frames that are delivered twice, 0 to 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.delay_ms < math.inf:
            raise ConfigError("delay_ms", self.delay_ms, "0 or more")
        if not 0 <= self.jitter_ms <= self.delay_ms:
            raise ConfigError("jitter_ms", self.jitter_ms, f"0 to the delay, {self.delay_ms}")
        if not 0 <= self.loss <= 1:
            raise ConfigError("loss", self.loss, "a share from 0 to 1")
        if self.rate_mbps is not None and not 0 < self.rate_mbps < math.inf:
            raise ConfigError("rate_mbps", self.rate_mbps, "more than 0")
        if not 0 <= self.duplication <= 1:
            raise ConfigError("duplication", self.duplication, "a share from 0 to 1")

    def __str__(self) -> str:
        parts = [f"{self.delay_ms:g} ms"]
        if self.jitter_ms:
            parts.append(f"jitter {self.jitter_ms:g} ms")
        if self.loss:
            parts.append(f"loss {self.loss:.1%}")
        if self.rate_mbps is not None:
            parts.append(f"{self.rate_mbps:g} Mbit/s")
        if self.duplication:
            parts.append(f"duplication {self.duplication:.1%}")
        return ", ".join(parts)


IDEAL = NetworkConditions()


class Lane:
    """One direction of a cable: computes when each frame arrives, or that it is lost.

    Times are seconds of any steady clock. The same seed and frames give the same results.
    """

    def __init__(
        self, conditions: NetworkConditions, seed: str, longest_queue_s: float = LONGEST_QUEUE_S
    ) -> None:
        self.conditions = conditions
        self.num_frames = self.num_bytes = self.num_lost = self.num_overrun = self.num_doubled = 0
        self._rng = random.Random(seed)
        self._longest_queue_s = longest_queue_s
        self._free_at = self._last = -math.inf

    def send(self, now: float, size: int) -> float | None:
        """Arrival time of a frame of `size` bytes that is sent now; None when it is lost."""
        conditions, sent = self.conditions, now
        if conditions.rate_mbps is not None:
            start = max(now, self._free_at)
            if start - now > self._longest_queue_s:
                self.num_overrun += 1
                return None
            sent = self._free_at = start + size * 8 / (conditions.rate_mbps * _BITS_PER_MEGABIT)
        if conditions.loss and self._rng.random() < conditions.loss:
            self.num_lost += 1
            return None
        self.num_frames += 1
        self.num_bytes += size
        delay_ms = conditions.delay_ms
        if conditions.jitter_ms:
            delay_ms += self._rng.uniform(-conditions.jitter_ms, conditions.jitter_ms)
        self._last = max(self._last, sent + delay_ms / 1e3)
        return self._last

    def doubles(self) -> bool:
        """Whether the frame that was just sent is delivered twice."""
        share = self.conditions.duplication
        is_doubled = bool(share) and self._rng.random() < share
        self.num_doubled += is_doubled
        return is_doubled


class Cable:
    """A host's two lanes: `up` towards the hub, `down` from it. A cut cable carries nothing."""

    def __init__(
        self,
        name: str,
        conditions: NetworkConditions,
        seed: int,
        longest_queue_s: float = LONGEST_QUEUE_S,
    ) -> None:
        self.is_cut = False
        self.up = Lane(conditions, f"{seed}:{name}:up", longest_queue_s)
        self.down = Lane(conditions, f"{seed}:{name}:down", longest_queue_s)

    def change(self, conditions: NetworkConditions, *, is_cut: bool) -> None:
        """Set the conditions for frames that are sent from now on."""
        self.up.conditions = self.down.conditions = conditions
        self.is_cut = is_cut

    def counts(self) -> dict[str, int]:
        """Sums of both lanes: frames and bytes carried, and frames lost, dropped and doubled."""
        lanes = (self.up, self.down)
        return {
            "frames": sum(lane.num_frames for lane in lanes),
            "bytes": sum(lane.num_bytes for lane in lanes),
            "lost": sum(lane.num_lost for lane in lanes),
            "overrun": sum(lane.num_overrun for lane in lanes),
            "doubled": sum(lane.num_doubled for lane in lanes),
        }
