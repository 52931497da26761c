"""Sweeps of the constants that the baselines' publications leave open, on separate texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

Steps = tuple[tuple[str, tuple[float, ...]], ...]

SWEEPS: Mapping[str, Steps] = {
    "colocated": (("depth", (2, 3, 8)), ("nodes", (48,)), ("width", (8,))),
    "specinfer": (("depth", (2, 4)), ("nodes", (6,)), ("width", (1, 5))),
    "specedge": (
        ("groups", (1,)), ("depth", (2, 4)), ("proactive", (0, 5, 8)), ("depth", (3, 9)),
        ("nodes", (48,)), ("width", (3,)),
    ),
    "cosine-paper": (
        ("depth", (3, 5)), ("team_size", (1, 2)), ("idle", (0.6,)), ("weight", (0.0, 1.0)),
        ("budget", (48,)), ("threshold", (0.5,)), ("explore", (0.1,)), ("exploit", (0.3,)),
        ("memory", (0.6,)), ("embeds", (0,)),
    ),
}  # fmt: skip
"""For each baseline, the constants in the order of the sweep, with the values that are compared
with the best one so far."""


def tune(name: str, speed_of: Callable[[str], float]) -> Iterator[tuple[str, float]]:
    """Try settings of a baseline, one constant after another, beginning with its defaults.

    Yields the name of each tried policy with its speed, the defaults first.
    """
    chosen: dict[str, float] = {}
    best = speed_of(name)
    yield name, best
    for constant, values in SWEEPS[name]:
        found = chosen
        for value in values:
            tried = {**chosen, constant: value}
            policy = f"{name}:{','.join(f'{key}={each:g}' for key, each in tried.items())}"
            speed = speed_of(policy)
            yield policy, speed
            if speed > best:
                best, found = speed, tried
        chosen = found
