"""The cells of the benchmark, and the order in which policies run in them.

A cell is one load under one set of network conditions at one temperature. Within a repetition its
policies run one after the other. Every second repetition has the reverse order, since a later
policy profits from what the target has learned; and every two repetitions begin with another
policy, so that a drift of the machine's speed affects all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgecosine.balance.policy import BASELINES, PARTS
from edgecosine.errors import LabError
from edgecosine.lab.bench.record import ClosedLoad, OpenLoad
from edgecosine.lab.network.conditions import NetworkConditions

ALONE, OURS = "target-alone", "edgecosine"
BATCHED, ASSISTED = "hf-batched", "hf-assisted"
STOCK = (BATCHED, ASSISTED)
"""transformers' own generation, outside the runtime, in place of a policy."""
COLOCATED = "colocated"
WITH_COPIES = ("specedge",)
"""Policies whose drafters are copies of one model, the generalist: as many as others have."""
GENERALIST = "generalist"

Site = Literal["network", "hostile", "loopback"]
"""network: drafters on cables with network conditions; hostile: the same, with drafters that are
confident in wrong tokens; loopback: all nodes on one host, without network time in a round."""

LAN = NetworkConditions(delay_ms=0.15, rate_mbps=1000)
OPEN_LOAD_S = 30.0

_IN_THE_RUNTIME = (*BASELINES, OURS)
_ON_CABLES = tuple(policy for policy in _IN_THE_RUNTIME if policy != COLOCATED)
_ABLATIONS = (OURS, *(f"{OURS}-without-{part}" for part in PARTS))


@dataclass(frozen=True, slots=True)
class Cell:
    """A load and the policies that it measures; `conditions` are those of the drafters' cables."""

    name: str
    load: ClosedLoad | OpenLoad
    policies: tuple[str, ...]
    conditions: NetworkConditions = LAN
    temperature: float = 0.0
    site: Site = "network"


@dataclass(frozen=True, slots=True)
class Step:
    """One run: a policy in a cell, in one repetition from 0 on."""

    cell: Cell
    policy: str
    repeat: int


def all_cells(low_per_s: float, high_per_s: float) -> tuple[Cell, ...]:
    """Every cell, by site; the rates are those of the open loads, in requests per second."""
    one, eight = ClosedLoad(1), ClosedLoad(8)
    swinging = OpenLoad(low_per_s, high_per_s, OPEN_LOAD_S / 2)
    return (
        Cell("single", one, (*_IN_THE_RUNTIME, ASSISTED)),
        Cell("four", ClosedLoad(4), _IN_THE_RUNTIME),
        Cell("eight", eight, (*_IN_THE_RUNTIME, BATCHED)),
        Cell("sixteen", ClosedLoad(16), _IN_THE_RUNTIME),
        Cell("single-sampled", one, _IN_THE_RUNTIME, temperature=0.8),
        Cell("eight-sampled", eight, _IN_THE_RUNTIME, temperature=0.8),
        Cell("open-low", OpenLoad(low_per_s, low_per_s), _IN_THE_RUNTIME),
        Cell("open-high", OpenLoad(high_per_s, high_per_s), _IN_THE_RUNTIME),
        Cell("open-fluctuating", swinging, _IN_THE_RUNTIME),
        Cell("ablations", one, _ABLATIONS),
        Cell("ablations-eight", eight, _ABLATIONS),
        Cell("slow", one, _ON_CABLES, NetworkConditions(delay_ms=0.15, rate_mbps=100)),
        Cell("loss", one, _ON_CABLES, NetworkConditions(delay_ms=0.15, rate_mbps=1000, loss=0.01)),
        Cell("rtt2", one, _ON_CABLES, NetworkConditions(delay_ms=1, rate_mbps=1000)),
        Cell(
            "jitter", one, _ON_CABLES, NetworkConditions(delay_ms=1, jitter_ms=0.8, rate_mbps=1000)
        ),
        Cell("rtt15", one, _ON_CABLES, NetworkConditions(delay_ms=7.5, rate_mbps=1000)),
        Cell("rtt50", one, _ON_CABLES, NetworkConditions(delay_ms=25, rate_mbps=1000)),
        Cell("hostile", one, (ALONE, OURS), site="hostile"),
        Cell("hostile-eight", eight, (ALONE, OURS), site="hostile"),
        Cell("loopback", one, _ON_CABLES, NetworkConditions(), site="loopback"),
    )


CELL_NAMES = tuple(cell.name for cell in all_cells(1.0, 1.0))


def quick_cells(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """The cells of the first seven figures, with only the policies that these need."""
    needed = {
        "single": (ALONE, OURS, ASSISTED),
        "eight": (*_IN_THE_RUNTIME, BATCHED),
        "rtt15": (ALONE, OURS),
    }
    return tuple(replace(cell, policies=needed[cell.name]) for cell in cells if cell.name in needed)


def only(cells: Sequence[Cell], names: Sequence[str]) -> tuple[Cell, ...]:
    """The cells of these names; all when no name is given.

    Raises LabError.
    """
    there = [cell.name for cell in cells]
    if unknown := set(names) - set(there):
        raise LabError(f"no cell {', '.join(sorted(unknown))} here; there are {', '.join(there)}")
    return tuple(cell for cell in cells if not names or cell.name in names)


def schedule(cells: Sequence[Cell], repeats: int) -> list[Step]:
    """All runs in order: by site, then by repetition, then by cell."""
    steps = []
    for site in dict.fromkeys(cell.site for cell in cells):
        here = [cell for cell in cells if cell.site == site]
        for repeat, cell in itertools.product(range(repeats), here):
            steps += [Step(cell, policy, repeat) for policy in in_turn(cell.policies, repeat)]
    return steps


def in_turn(policies: Sequence[str], repeat: int) -> tuple[str, ...]:
    """The order of a repetition: every two begin with the next policy, every second is reversed."""
    first = repeat // 2 % len(policies)
    return (*policies[first:], *policies[:first])[:: -1 if repeat % 2 else 1]
