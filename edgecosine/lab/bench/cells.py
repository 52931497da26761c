"""The cells of the benchmark, and the order in which policies run in them.

A cell is one load under one set of network conditions at one temperature. Every repetition of a
cell has fresh clusters. Its policies run one after another, in an order that is balanced over the
repetitions, and no two runs of a cell send the same prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgecosine.balance.policy import BASELINES, PARTS
from edgecosine.errors import LabError
from edgecosine.lab.bench.arrivals import fluctuating
from edgecosine.lab.bench.record import ClosedLoad, OpenLoad
from edgecosine.lab.hostile_drafter import HARMS, Harm
from edgecosine.lab.network.conditions import NetworkConditions
from edgecosine.lab.paired_runs import balanced_order

ALONE, OURS = "target-alone", "edgecosine"
BATCHED, PLAIN, ASSISTED = "hf-batched", "hf-plain", "hf-assisted"
STOCK = (BATCHED, PLAIN, ASSISTED)
"""Generation by transformers alone, outside the runtime, in place of a policy."""
COLOCATED = "colocated"
WITH_COPIES = ("specedge",)
"""Policies whose drafters are copies of one model, the generalist; they have the same number of
drafters as other policies."""
GENERALIST = "generalist"

Site = Literal["network", "hostile", "loopback"]
"""network: drafters on cables with network conditions; hostile: the same, with drafters that do
harm; loopback: all nodes on one host, so that rounds contain no network delay."""

LAN = NetworkConditions(delay_ms=0.15, rate_mbps=1000)
OPEN_LOAD_S = 30.0
_LEAST, _DOMAINS = 32, 4

_IN_THE_RUNTIME = (*BASELINES, OURS)
_ON_CABLES = tuple(policy for policy in _IN_THE_RUNTIME if policy != COLOCATED)
_INPUTS = ("routing", "surprise", "reports")
_ABLATIONS = (OURS, *(f"{OURS}-without-{part}" for part in PARTS))
_OF_INPUTS = (OURS, *(f"{OURS}-without-{part}" for part in _INPUTS))
_OF_LONE_REQUESTS = (f"{OURS}-without-repetition",)
_OTHERS = tuple(p for p in _ABLATIONS if p not in (*_OF_INPUTS[1:], *_OF_LONE_REQUESTS))
"""The ablations with eight requests at a time, in two cells, since one would need more prompts than
there are."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A load and the policies to measure; `conditions` are those of the drafters' cables."""

    name: str
    load: ClosedLoad | OpenLoad
    policies: tuple[str, ...]
    conditions: NetworkConditions = LAN
    temperature: float = 0.0
    site: Site = "network"
    harm: Harm | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One run: a policy in a cell, in one repetition, from 0 on. The prompts of its warm-up and
    those of its measurement are numbered from `first_prompt` on."""

    cell: Cell
    policy: str
    repeat: int
    first_prompt: int = 0


def all_cells(low_per_s: float, high_per_s: float) -> tuple[Cell, ...]:
    """Every cell, in the order of sites; the rates of the open loads are in requests per second."""
    one, eight = ClosedLoad(1), ClosedLoad(8)
    swinging = OpenLoad(low_per_s, high_per_s, OPEN_LOAD_S / 2)
    return (
        Cell("single", one, (*_IN_THE_RUNTIME, PLAIN, ASSISTED)),
        Cell("four", ClosedLoad(4), _IN_THE_RUNTIME),
        Cell("eight", eight, (*_IN_THE_RUNTIME, BATCHED)),
        Cell("sixteen", ClosedLoad(16), _IN_THE_RUNTIME),
        Cell("single-sampled", one, _IN_THE_RUNTIME, temperature=0.8),
        Cell("eight-sampled", eight, _IN_THE_RUNTIME, temperature=0.8),
        Cell("open-low", OpenLoad(low_per_s, low_per_s), _IN_THE_RUNTIME),
        Cell("open-high", OpenLoad(high_per_s, high_per_s), _IN_THE_RUNTIME),
        Cell("open-fluctuating", swinging, _IN_THE_RUNTIME),
        Cell("ablations", one, _ABLATIONS),
        Cell("ablations-eight", eight, _OTHERS),
        Cell("ablations-inputs-eight", eight, _OF_INPUTS),
        Cell("slow", one, _ON_CABLES, NetworkConditions(delay_ms=0.15, rate_mbps=100)),
        Cell("loss", one, _ON_CABLES, NetworkConditions(delay_ms=0.15, rate_mbps=1000, loss=0.01)),
        Cell("rtt2", one, _ON_CABLES, NetworkConditions(delay_ms=1, rate_mbps=1000)),
        Cell(
            "jitter", one, _ON_CABLES, NetworkConditions(delay_ms=1, jitter_ms=0.8, rate_mbps=1000)
        ),
        Cell("rtt15", one, _ON_CABLES, NetworkConditions(delay_ms=7.5, rate_mbps=1000)),
        Cell("rtt50", one, _ON_CABLES, NetworkConditions(delay_ms=25, rate_mbps=1000)),
        *(
            Cell(f"hostile-{harm}{name}", load, (ALONE, OURS), site="hostile", harm=harm)
            for name, load in (("", one), ("-eight", eight))
            for harm in HARMS
        ),
        Cell("loopback", one, _ON_CABLES, NetworkConditions(), site="loopback"),
    )


CELL_NAMES = tuple(cell.name for cell in all_cells(1.0, 1.0))


def quick_cells(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """The cells of the first seven figures, with only those policies that the figures need."""
    needed = {
        "single": (ALONE, OURS, PLAIN, ASSISTED),
        "eight": (*_IN_THE_RUNTIME, BATCHED),
        "rtt15": (ALONE, OURS),
    }
    return tuple(replace(cell, policies=needed[cell.name]) for cell in cells if cell.name in needed)


def only(
    cells: Sequence[Cell], names: Sequence[str], policies: Sequence[str] = ()
) -> tuple[Cell, ...]:
    """The cells of these names, with these policies; all when none is given. A cell that has none
    of the policies is left out.

    Raises LabError when there is no cell of a name, or no cell has a policy.
    """
    there = [cell.name for cell in cells]
    if unknown := set(names) - set(there):
        raise LabError(f"no cell {', '.join(sorted(unknown))} here; there are {', '.join(there)}")
    chosen = [cell for cell in cells if not names or cell.name in names]
    known = dict.fromkeys(policy for cell in chosen for policy in cell.policies)
    if unknown := set(policies) - set(known):
        unmeasured = ", ".join(sorted(unknown))
        raise LabError(f"no cell here measures {unmeasured}; there are {', '.join(known)}")
    kept = policies or known
    chosen = [
        replace(cell, policies=tuple(p for p in cell.policies if p in kept)) for cell in chosen
    ]
    return tuple(cell for cell in chosen if cell.policies)


def schedule(
    cells: Sequence[Cell], repeats: int, requests: int = 8, prompts: int | None = None
) -> list[Step]:
    """All runs in order: by site, then by cell, then by repetition. `requests` is the least number
    of requests in a closed loop, `prompts` the number of different prompts.

    Raises LabError when a cell needs more prompts than there are.
    """
    steps, number = list[Step](), 0
    for site in dict.fromkeys(cell.site for cell in cells):
        for cell in (cell for cell in cells if cell.site == site):
            start = number
            for repeat in range(repeats):
                for policy in balanced_order(cell.policies, repeat):
                    steps.append(Step(cell, policy, repeat, number))
                    number += num_warm_up(cell) + num_requests(cell, requests, repeat)
            if prompts is not None and number - start > prompts:
                raise LabError(
                    f"cell {cell.name} needs {number - start} different prompts, and there are "
                    f"{prompts}: choose fewer --repeats or --requests"
                )
    return steps


def num_warm_up(cell: Cell) -> int:
    """Requests before each run: one of each domain, and at least the cell's concurrency."""
    return max(_DOMAINS, cell.load.concurrency if isinstance(cell.load, ClosedLoad) else 0)


def num_requests(cell: Cell, least: int, repeat: int) -> int:
    """Requests of a run: at least `least`. A closed loop of several requests at a time has at least
    four times as many, up to 32."""
    if isinstance(cell.load, ClosedLoad):
        at_once = cell.load.concurrency
        return max(least, min(_LEAST, 4 * at_once) if at_once > 1 else 0)
    return len(arrivals_s(cell.load, repeat))


def arrivals_s(load: OpenLoad, repeat: int) -> list[float]:
    """Arrival times of an open load's requests, in seconds from the start of a run."""
    period_s = load.period_s or OPEN_LOAD_S
    return fluctuating(load.low_per_s, load.high_per_s, period_s, OPEN_LOAD_S, repeat)
