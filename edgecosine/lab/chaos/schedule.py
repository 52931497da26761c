"""The schedule of a chaos run: which faults, where, when and how long, from a seed alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from edgecosine.lab.chaos.faults import BROKER, TARGET, Fault, Kind

_OFTEN: Final[frozenset[Kind]] = frozenset(
    {"kill_target", "kill_drafter", "kill_broker", "freeze_target", "fill_disk"}
)
"""These come twice in every round of the deck."""
_LASTING_S: Final = (0.5, 5.0)
_LONG_S: Final = (6.0, 9.0)
_LONG_SHARE: Final = 0.2
"""Of lasting faults that outlast the patience with which lost nodes are noticed."""
_LONGEST_PAUSE_S: Final = 1.0
_FRAMES: Final = (0.02, 0.2)
_STEPS_S: Final = (5.0, 60.0, 900.0, 7200.0)
_QUICK: Final = ("kill", "restart", "step")


def make_schedule(
    seed: int, *, requests: int, faults: int, kinds: Sequence[Kind], drafters: Sequence[str]
) -> tuple[Fault, ...]:
    """`faults` faults of these kinds, in the order in which they are due.

    They are dealt from a shuffled deck with every kind in it, so that each comes when there are as
    many faults as cards, and fall anywhere in the first nine tenths of the requests.
    """
    chance = random.Random(f"chaos:{seed}")
    last = max(0, requests * 9 // 10)
    dealt = _deal(chance, faults, kinds)
    moments = sorted(chance.randint(0, last) for _ in dealt)
    return tuple(
        _fault(chance, kind, after, drafters) for kind, after in zip(dealt, moments, strict=True)
    )


def _deal(chance: random.Random, count: int, kinds: Sequence[Kind]) -> list[Kind]:
    dealt: list[Kind] = []
    while kinds and len(dealt) < count:
        # Each kind once first, so that short schedules have as many kinds as they can.
        rounds = [list(kinds), [kind for kind in kinds if kind in _OFTEN]]
        for deck in rounds:
            chance.shuffle(deck)
            dealt.extend(deck)
    return dealt[:count]


def _fault(chance: random.Random, kind: Kind, after: int, drafters: Sequence[str]) -> Fault:
    return Fault(
        kind,
        _place(chance, kind, drafters),
        after,
        round(chance.uniform(0, _LONGEST_PAUSE_S), 3),
        0.0 if kind.startswith(_QUICK) else _seconds(chance),
        _strength(chance, kind),
    )


def _place(chance: random.Random, kind: Kind, drafters: Sequence[str]) -> str:
    if kind in {"lose_packets", "double_packets"}:
        return chance.choice((TARGET, BROKER, *drafters))
    if "broker" in kind:
        return BROKER
    if kind.endswith("_drafter") or kind == "step_drafter_clock":
        return chance.choice(drafters)
    return TARGET


def _seconds(chance: random.Random) -> float:
    span = _LONG_S if chance.random() < _LONG_SHARE else _LASTING_S
    return round(chance.uniform(*span), 3)


def _strength(chance: random.Random, kind: Kind) -> float:
    if kind.endswith("clock"):
        return chance.choice((-1, 1)) * chance.choice(_STEPS_S)
    if kind.endswith("packets"):
        return round(chance.uniform(*_FRAMES), 3)
    return 0.0
