"""Measures the duration of a target step by its number of rows, before the first request."""

from __future__ import annotations

import time

from edgecosine.engine.base import Prefilling, TargetEngine, VerifyWork
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.tree import TokenTree, chain

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64)
REPEATS = 3
BUDGET_S = 4.0
"""Time limit; sizes that were not measured are learned later."""
_LENGTH = 48
_KEY = "profile"


def profile(engine: TargetEngine) -> dict[int, float]:
    """Rows -> seconds, the minimum of a few steps over a sequence of 48 tokens."""
    length = min(_LENGTH, engine.max_context - max(ROWS))
    if length < 1:
        return {}
    tokens = (1,) * length
    while isinstance(_step(engine, tokens, TokenTree()), Prefilling):
        pass
    costs: dict[int, float] = {}
    ending = time.perf_counter() + BUDGET_S
    for num_rows in ROWS:
        tree = chain((1,) * (num_rows - 1))
        times = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            _step(engine, tokens, tree)
            times.append(time.perf_counter() - started)
            if time.perf_counter() > ending:
                break
        costs[num_rows] = min(times)
        if time.perf_counter() > ending:
            break
    engine.release(_KEY)
    return costs


def _step(engine: TargetEngine, tokens: tuple[int, ...], tree: TokenTree) -> object:
    [outcome] = engine.step([VerifyWork(_KEY, tokens, len(tokens), tree, Sampling())]).outcomes
    return outcome
