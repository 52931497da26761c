"""Measures the engines' cost tables: passes and drafting steps by batch size, on one core."""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgecosine import zoo
from edgecosine.balance.cost_model import PassReport
from edgecosine.balance.drafter_table import SHORTLIST
from edgecosine.balance.plan import MAX_NODES
from edgecosine.balance.planner import Planner
from edgecosine.engine.base import DraftWork, TargetEngine, VerifyWork, never
from edgecosine.engine.draft.drafter import TransformerDrafter
from edgecosine.engine.loading.load import load_drafter, load_target
from edgecosine.engine.options import LoadOptions
from edgecosine.lab.engine_calls import prefill
from edgecosine.lab.figures import Notify
from edgecosine.lab.simulation.texts import NUM_PROMPT, Texts
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.messages import SharedNoise
from edgecosine.protocol.wire.tree import EMPTY_TREE, TokenTree

SESSIONS = 16
SHAPES = (
    *((1, nodes) for nodes in (0, 1, 2, 3, 4, 5, 7, 9, 11, 15, 19, 24)),
    *((4, nodes) for nodes in (1, 3, 5, 7, 11, 15)),
    *((8, nodes) for nodes in (0, 3, 5, 7, 11)),
    *((16, nodes) for nodes in (0, 3, 7, 15)),
)
"""Number of sessions in a measured pass, and tree nodes of each session."""
PLANNED = (1, 2, 4, 8, SHORTLIST)
LENGTH = 112
"""Tokens of a measured sequence: a prompt and half of an answer."""
_GAMMA, _AHEAD_GAMMA, _AHEAD_WIDTH = 5, 8, 6
_BATCHES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class EngineCosts:
    """The measured costs of engines and planner, as in `Costs`."""

    pass_s: dict[int, float]
    session_s: float
    step_s: dict[int, float]
    work_s: float
    plan_s: dict[int, float]


def measure_engines(texts: Texts, ballast: int, repeats: int, notify: Notify) -> EngineCosts:
    """Load the target and a drafter, and measure their costs and those of plans, on the calling
    thread."""
    notify("measuring the target's passes by rows")
    engine, _ = load_target(LoadOptions(zoo.TARGET, threads=1, ballast=ballast, slots=SESSIONS))
    pass_s, session_s = _passes(engine, texts, repeats)
    notify("measuring a drafter's steps by rows")
    drafter, _ = load_drafter(LoadOptions(zoo.drafter_names()[0], threads=1, slots=SESSIONS))
    assert isinstance(drafter, TransformerDrafter)
    step_s, work_s = _steps(drafter, texts, repeats)
    notify("measuring plans by drafters")
    return EngineCosts(pass_s, session_s, step_s, work_s, _plans(pass_s, repeats))


def _passes(engine: TargetEngine, texts: Texts, repeats: int) -> tuple[dict[int, float], float]:
    works = [_work(f"{n}", texts.lists[n][:LENGTH]) for n in range(SESSIONS)]
    prefill(engine, works)
    times: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
    for _ in range(repeats):
        for sessions, nodes in SHAPES:
            tree = _bush(nodes)
            batch = [_work(w.key, w.tokens, tree) for w in works[:sessions]]
            engine.step(works[:sessions])  # frees the KV positions of the former tree
            started = time.perf_counter()
            engine.step(batch)
            times[sessions, nodes].append(time.perf_counter() - started)
    seconds = {shape: _quick(each) for shape, each in times.items()}
    extra = [
        (seconds[many, nodes] - _between(seconds, many * (1 + nodes))) / (many - 1)
        for many, nodes in seconds
        if many > 1 and many * (1 + nodes) <= 25
    ]
    session_s = max(0.0, statistics.median(extra))
    table: defaultdict[int, list[float]] = defaultdict(list)
    for (sessions, nodes), each_s in seconds.items():
        table[sessions * (1 + nodes)].append(each_s - (sessions - 1) * session_s)
    return {rows: statistics.median(table[rows]) for rows in sorted(table)}, session_s


def _between(seconds: dict[tuple[int, int], float], rows: int) -> float:
    """Seconds of a pass of one session with `rows` rows, interpolated."""
    alone = sorted((1 + nodes, s) for (many, nodes), s in seconds.items() if many == 1)
    return float(np.interp(rows, [n for n, _ in alone], [s for _, s in alone]))


def _work(key: str, tokens: Sequence[int], tree: TokenTree = EMPTY_TREE) -> VerifyWork:
    return VerifyWork(key, tokens, NUM_PROMPT, tree, Sampling())


def _bush(nodes: int) -> TokenTree:
    """A tree of two branches with tokens that are never accepted."""
    half = (nodes + 1) // 2
    parents = [*range(-1, half - 1), *([-1] if nodes > half else []), *range(half, nodes - 1)]
    ones = (1,) * nodes
    return TokenTree(tuple(range(1, nodes + 1)), tuple(parents[:nodes]), (0.5,) * nodes, ones)


def _steps(
    drafter: TransformerDrafter, texts: Texts, repeats: int
) -> tuple[dict[int, float], float]:
    """Seconds of a step by rows, and seconds of a call for each request, besides its steps."""
    times: defaultdict[int, list[float]] = defaultdict(list)
    firsts: list[tuple[int, int, float]] = []
    for repeat in range(repeats):
        for size in _BATCHES:
            for place in range(NUM_PROMPT, NUM_PROMPT + 24, 4):
                for is_ahead in (False, True):
                    batch = _batch(texts, size, place + is_ahead, repeat, is_ahead=is_ahead)
                    steps = list(_timed_steps(drafter, batch))
                    for rows, seconds in steps[1:-1]:
                        times[rows].append(seconds)
                    firsts.append((size, steps[0][0], steps[0][1] + steps[-1][1]))
        for key in range(SESSIONS):
            drafter.release(f"{key}")
    table = {rows: _quick(s) for rows, s in sorted(times.items()) if len(s) > 2}
    known = sorted(table)
    extra = [
        (seconds - table[min(known, key=lambda row: abs(row - rows))]) / size
        for size, rows, seconds in firsts
        if min(abs(row - rows) for row in known) <= 1
    ]
    return table, max(0.0, _quick(extra))


def _plans(pass_s: Mapping[int, float], repeats: int) -> dict[int, float]:
    """Seconds of a plan by the number of drafters; all drafters have different statistics."""
    found = {}
    for count in PLANNED:
        planner, rng = Planner(), random.Random(count)
        for rows, seconds in pass_s.items():
            planner.statistics.observe_pass(PassReport(rows, seconds))
        names = [f"drafter-{number}" for number in range(count)]
        for name in names:
            compute_s = rng.uniform(0.001, 0.003)
            elapsed_s = compute_s + rng.uniform(0.001, 0.003)
            planner.statistics.observe_answer(name, elapsed_s, compute_s, 4)
            planner.statistics.drafter(name).record.rate.observe(rng.randint(5, 40), 15)
        request = planner.statistics.open("edgecosine")
        times = []
        for _ in range(10 * repeats):
            started = time.perf_counter()
            planner.plan(request, names, MAX_NODES)
            times.append(time.perf_counter() - started)
        found[count] = _quick(times)
    return found


def _batch(texts: Texts, size: int, place: int, repeat: int, *, is_ahead: bool) -> list[DraftWork]:
    works = []
    for number in range(size):
        tokens = tuple(texts.lists[(number + size * repeat) % len(texts.lists)][:place])
        key, coupling = f"{number}", SharedNoise()
        if is_ahead:
            works.append(
                DraftWork(key, tokens, _AHEAD_GAMMA, _AHEAD_WIDTH, coupling, ahead=EMPTY_TREE)
            )
        else:
            works.append(DraftWork(key, tokens, _GAMMA, 2, coupling))
    return works


def _timed_steps(
    drafter: TransformerDrafter, batch: list[DraftWork]
) -> Iterator[tuple[int, float]]:
    """Rows and seconds of each step; the last entry is the end of the call."""
    steps = drafter.steps(batch, never)
    while True:
        started = time.perf_counter()
        rows = next(steps, None)
        yield rows or 0, time.perf_counter() - started
        if rows is None:
            return


def _quick(times: Sequence[float]) -> float:
    """The lower quartile, since other load on the machine only adds to times."""
    return float(np.percentile(times, 25))
