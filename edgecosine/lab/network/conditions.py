"""What a network does to what crosses it: delay, jitter, loss, duplication, rate; pure arithmetic.

A host hangs on one cable. A cable has two lanes, one each way, and a lane keeps the order of what
it carries, as a real one does. Nothing here knows sockets or reads a clock.
"""

from __future__ import annotations

import math
import random

import msgspec

from edgecosine.errors import ConfigError

LONGEST_QUEUE_S = 0.2
"""What waits longer than that for a slow lane is dropped, as by a switch with a full buffer."""

_BITS_PER_MEGABIT = 1e6


class NetworkConditions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One cable's weather, the same in both directions.

    A host at `delay_ms` from the hub sees a round trip of 2 * delay_ms to a host with no weather.
    Raises ConfigError for what cannot be.
    """

    delay_ms: float = 0.0
    """One way."""
    jitter_ms: float = 0.0
    """Each frame's delay is drawn from delay_ms - jitter_ms to delay_ms + jitter_ms."""
    loss: float = 0.0
    """Share of frames that never arrive, 0 to 1."""
    rate_mbps: float | None = None
    """Megabits per second; None: as fast as it goes."""
    duplication: float = 0.0
    """Share of the frames that arrive which arrive twice, 0 to 1."""

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


FINE = NetworkConditions()


class Lane:
    """One direction of a cable: says when each frame is through, or that it never will be.

    Times are seconds of any steady clock. The same seed and the same frames give the same fate.
    """

    def __init__(
        self, weather: NetworkConditions, seed: str, longest_queue_s: float = LONGEST_QUEUE_S
    ) -> None:
        self.weather = weather
        self.num_frames = self.num_bytes = self.num_lost = self.num_overrun = self.num_doubled = 0
        self._chance = random.Random(seed)
        self._longest_queue_s = longest_queue_s
        self._free_at = self._last = -math.inf

    def send(self, now: float, size: int) -> float | None:
        """When a frame of `size` bytes that enters now is through; None when it is lost."""
        weather, sent = self.weather, now
        if weather.rate_mbps is not None:
            start = max(now, self._free_at)
            if start - now > self._longest_queue_s:
                self.num_overrun += 1
                return None
            sent = self._free_at = start + size * 8 / (weather.rate_mbps * _BITS_PER_MEGABIT)
        if weather.loss and self._chance.random() < weather.loss:
            self.num_lost += 1
            return None
        self.num_frames += 1
        self.num_bytes += size
        delay_ms = weather.delay_ms
        if weather.jitter_ms:
            delay_ms += self._chance.uniform(-weather.jitter_ms, weather.jitter_ms)
        self._last = max(self._last, sent + delay_ms / 1e3)
        return self._last

    def doubles(self) -> bool:
        """Whether the frame that has just been sent comes out twice."""
        share = self.weather.duplication
        is_doubled = bool(share) and self._chance.random() < share
        self.num_doubled += is_doubled
        return is_doubled


class Cable:
    """A host's two lanes: `up` towards the hub, `down` from it. A cut cable carries nothing."""

    def __init__(
        self,
        name: str,
        weather: NetworkConditions,
        seed: int,
        longest_queue_s: float = LONGEST_QUEUE_S,
    ) -> None:
        self.is_cut = False
        self.up = Lane(weather, f"{seed}:{name}:up", longest_queue_s)
        self.down = Lane(weather, f"{seed}:{name}:down", longest_queue_s)

    def change(self, weather: NetworkConditions, *, is_cut: bool) -> None:
        """New weather for what enters from now on."""
        self.up.weather = self.down.weather = weather
        self.is_cut = is_cut

    def counts(self) -> dict[str, int]:
        """Frames and bytes carried, frames lost, dropped and doubled, both lanes together."""
        lanes = (self.up, self.down)
        return {
            "frames": sum(lane.num_frames for lane in lanes),
            "bytes": sum(lane.num_bytes for lane in lanes),
            "lost": sum(lane.num_lost for lane in lanes),
            "overrun": sum(lane.num_overrun for lane in lanes),
            "doubled": sum(lane.num_doubled for lane in lanes),
        }
