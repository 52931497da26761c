"""The schedule of a chaos run: faults, places, times and durations, from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from edgecosine.lab.chaos.faults import BROKER, MEMBER_KINDS, TARGET, Fault, Kind

_OFTEN: Final[frozenset[Kind]] = frozenset(
    {"kill_target", "kill_drafter", "kill_member", "kill_broker", "freeze_target", "fill_disk"}
)
"""These kinds occur twice in every round of kinds."""
_LASTING_S: Final = (0.5, 5.0)
_LONG_S: Final = (6.0, 9.0)
_LONG_SHARE: Final = 0.2
"""Share of lasting faults that last longer than the detection of lost nodes takes."""
_LONGEST_PAUSE_S: Final = 1.0
_FRAMES: Final = (0.02, 0.2)
_STEPS_S: Final = (5.0, 60.0, 900.0, 7200.0)
_QUICK: Final = ("kill", "restart", "step")


def make_schedule(
    seed: int,
    *,
    requests: int,
    faults: int,
    kinds: Sequence[Kind],
    drafters: Sequence[str],
    members: Sequence[str] = (),
) -> tuple[Fault, ...]:
    """`faults` faults of these kinds, in the order of their due times.

    Kinds are drawn in shuffled rounds that contain all of them, so that every kind occurs if there
    are enough faults. Their due times are random within the first nine tenths of the requests.
    """
    rng = random.Random(f"chaos:{seed}")
    last = max(0, requests * 9 // 10)
    dealt = _deal(rng, faults, kinds)
    moments = sorted(rng.randint(0, last) for _ in dealt)
    return tuple(
        _fault(rng, kind, after, drafters, members)
        for kind, after in zip(dealt, moments, strict=True)
    )


def _deal(rng: random.Random, count: int, kinds: Sequence[Kind]) -> list[Kind]:
    dealt: list[Kind] = []
    while kinds and len(dealt) < count:
        # Each kind once first, so that a short schedule has as many kinds as possible.
        rounds = [list(kinds), [kind for kind in kinds if kind in _OFTEN]]
        for deck in rounds:
            rng.shuffle(deck)
            dealt.extend(deck)
    return dealt[:count]


def _fault(
    rng: random.Random, kind: Kind, after: int, drafters: Sequence[str], members: Sequence[str]
) -> Fault:
    return Fault(
        kind,
        _place(rng, kind, drafters, members),
        after,
        round(rng.uniform(0, _LONGEST_PAUSE_S), 3),
        0.0 if kind.startswith(_QUICK) else _seconds(rng),
        _strength(rng, kind),
    )


def _place(rng: random.Random, kind: Kind, drafters: Sequence[str], members: Sequence[str]) -> str:
    if kind in {"lose_packets", "double_packets"}:
        return rng.choice((TARGET, BROKER, *drafters, *members))
    if kind in MEMBER_KINDS:
        return rng.choice(members)
    if "broker" in kind:
        return BROKER
    if kind.endswith("_drafter") or kind == "step_drafter_clock":
        return rng.choice(drafters)
    return TARGET


def _seconds(rng: random.Random) -> float:
    span = _LONG_S if rng.random() < _LONG_SHARE else _LASTING_S
    return round(rng.uniform(*span), 3)


def _strength(rng: random.Random, kind: Kind) -> float:
    if kind.endswith("clock"):
        return rng.choice((-1, 1)) * rng.choice(_STEPS_S)
    if kind.endswith("packets"):
        return round(rng.uniform(*_FRAMES), 3)
    return 0.0
