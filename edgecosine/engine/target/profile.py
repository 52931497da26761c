"""Measures the duration of a target step by its number of rows, before the first request."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from edgecosine.engine.base import Prefilling, TargetEngine, VerifyWork
from edgecosine.engine.target.pass_table import PassTable
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.tree import TokenTree, chain

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64)
REPEATS = 3
BUDGET_S = 4.0
"""Time limit; sizes that were not measured are learned later."""
ALIKE = 1.25
"""Most ratio between a former and the present time of one row at which the former table is used."""
Clock = Callable[[], float]

_LENGTH = 48
_KEY = "profile"


def profile(
    engine: TargetEngine, table: PassTable | None = None, clock: Clock = time.perf_counter
) -> dict[int, float]:
    """Rows -> seconds, the minimum of a few steps over a sequence of 48 tokens.

    The former measurement in `table` is returned if its single row still takes as long; a new one
    is kept there.
    """
    length = min(_LENGTH, engine.max_context - max(ROWS))
    if length < 1:
        return {}
    tokens = (1,) * length
    while isinstance(_step(engine, tokens, TokenTree()), Prefilling):
        pass
    ending = clock() + BUDGET_S

    def quickest_s(num_rows: int) -> float:
        tree, least_s = chain((1,) * (num_rows - 1)), math.inf
        for _ in range(REPEATS):
            started = clock()
            _step(engine, tokens, tree)
            ended = clock()
            least_s = min(least_s, ended - started)
            if ended > ending:
                break
        return least_s

    former = table.read() if table is not None else {}
    costs = {1: quickest_s(1)}
    row_s = former.get(1, 0.0)
    if row_s / ALIKE < costs[1] < row_s * ALIKE:
        costs = {**former, **costs}
    else:
        for num_rows in ROWS[1:]:
            if clock() > ending:
                break
            costs[num_rows] = quickest_s(num_rows)
        if table is not None:
            table.write(costs)
    engine.release(_KEY)
    return costs


def _step(engine: TargetEngine, tokens: tuple[int, ...], tree: TokenTree) -> object:
    [outcome] = engine.step([VerifyWork(_KEY, tokens, len(tokens), tree, Sampling())]).outcomes
    return outcome
