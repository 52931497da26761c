"""A learning Ethernet switch with an emulated cable at each port, as pure arithmetic.

The hub's process passes frames in and sends those that come out; there is no socket or clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from edgecosine.lab.network.conditions import Cable, Lane, NetworkConditions

ADDRESS_BYTES = 6
MAX_WAITING = 20_000
"""Frames in flight; more are dropped."""


class Switch:
    """Accepts frames at a port, and releases them at other ports when they are due."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.cables: dict[str, Cable] = {}
        self._port_of: dict[bytes, str] = {}
        self._waiting: list[tuple[float, int, str, bytes, bool]] = []
        """Due time, number, port, frame, and whether it still has to be switched."""
        self._number = 0
        self.num_dropped = 0

    @property
    def next_due(self) -> float | None:
        """Time of the next event; None without any."""
        return self._waiting[0][0] if self._waiting else None

    def plug(self, port: str, conditions: NetworkConditions) -> None:
        """Add a cable."""
        self.cables[port] = Cable(port, conditions, self._seed)

    def enter(self, port: str, frame: bytes, now: float) -> None:
        """Accept a frame from the host at `port`."""
        cable = self.cables[port]
        if not cable.is_cut:
            self._carry(cable.up, port, frame, now, is_inside=False)

    def leave(self, now: float) -> Iterator[tuple[str, bytes, float]]:
        """Port, frame and due time of all frames that are due, in the order of time."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= now:
            due, _, port, frame, is_inside = heapq.heappop(waiting)
            if is_inside:
                yield port, frame, due
            else:
                self._switch(port, frame, due)

    def _switch(self, source: str, frame: bytes, now: float) -> None:
        destination, sender = frame[:ADDRESS_BYTES], frame[ADDRESS_BYTES : 2 * ADDRESS_BYTES]
        self._port_of[sender] = source
        known = self._port_of.get(destination)
        for port in (known,) if known is not None else self.cables:
            cable = self.cables[port]
            if port != source and not cable.is_cut:
                self._carry(cable.down, port, frame, now, is_inside=True)

    def _carry(self, lane: Lane, port: str, frame: bytes, now: float, *, is_inside: bool) -> None:
        due = lane.send(now, len(frame))
        if due is None:
            return
        self._push(due, port, frame, is_inside=is_inside)
        if lane.doubles():
            self._push(due, port, frame, is_inside=is_inside)

    def _push(self, due: float, port: str, frame: bytes, *, is_inside: bool) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self.num_dropped += 1
            return
        self._number += 1
        heapq.heappush(self._waiting, (due, self._number, port, frame, is_inside))
