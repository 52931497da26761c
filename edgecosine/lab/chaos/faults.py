"""The faults that can be injected: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "kill_target",
    "kill_drafter",
    "kill_broker",
    "freeze_target",
    "freeze_drafter",
    "freeze_broker",
    "restart_target",
    "restart_broker",
    "cut_target",
    "cut_drafter",
    "cut_all_drafters",
    "step_target_clock",
    "step_drafter_clock",
    "step_broker_clock",
    "fill_disk",
    "lose_packets",
    "double_packets",
    "kill_member",
    "freeze_member",
    "cut_member",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
MEMBER_KINDS: tuple[Kind, ...] = ("kill_member", "freeze_member", "cut_member")
"""Faults of a committee's members."""

MEANING: Mapping[Kind, str] = {
    "kill_target": "SIGKILL, and a restart",
    "kill_drafter": "SIGKILL, and a restart",
    "kill_broker": "SIGKILL, and a restart",
    "freeze_target": "SIGSTOP, seconds later SIGCONT",
    "freeze_drafter": "SIGSTOP, seconds later SIGCONT",
    "freeze_broker": "SIGSTOP, seconds later SIGCONT",
    "restart_target": "SIGTERM, which drains, and a restart",
    "restart_broker": "SIGTERM, and a restart",
    "cut_target": "the target's cable is cut: no broker, no drafters",
    "cut_drafter": "a drafter's cable is cut",
    "cut_all_drafters": "all drafters' cables are cut: the target reaches the broker alone",
    "step_target_clock": "the wall clock of the target jumps",
    "step_drafter_clock": "the wall clock of a drafter jumps",
    "step_broker_clock": "the wall clock of the broker jumps",
    "fill_disk": "the disk with the target's journal is full",
    "lose_packets": "a cable loses frames",
    "double_packets": "a cable delivers frames twice",
    "kill_member": "SIGKILL of a committee's member or of its replica, and a restart",
    "freeze_member": "SIGSTOP of a member or of its replica, seconds later SIGCONT",
    "cut_member": "the cable of a member or of its replica is cut",
}

TARGET = "target"
BROKER = "broker"
"""Places of faults, besides the node ids of drafters and members."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    place     the target, the broker, or the node id of a drafter or member; one place has one fault
              at a time
    after     number of ended requests at which the fault is due
    pause_s   seconds from then until it is injected
    seconds   duration; 0 for kills, restarts and steps of clocks
    strength  share of the frames that are lost or doubled, seconds of a clock's step, otherwise 0
    """

    kind: Kind
    place: str
    after: int
    pause_s: float = 0.0
    seconds: float = 0.0
    strength: float = 0.0

    def __str__(self) -> str:
        parts = [self.kind.replace("_", " ")]
        if self.place not in self.kind and self.kind != "cut_all_drafters":
            parts.append(f"of {self.place}")
        if self.strength:
            is_clock = self.kind.endswith("clock")
            parts.append(f"by {self.strength:+.0f} s" if is_clock else f"{self.strength:.0%}")
        if self.seconds:
            parts.append(f"for {self.seconds:.1f} s")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Injected:
    """An injected fault; times in seconds since the run began."""

    fault: Fault
    begun_s: float
    ended_s: float
    """When it was reverted: the process runs, the cable is restored, the disk has free space."""
