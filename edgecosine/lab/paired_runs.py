"""Comparisons of two policies over repetitions, and the order in which policies take turns.

Pure functions. A repetition gives one number for each policy; the numbers of one repetition are a
pair, whose ratio does not depend on a drift of the machine between repetitions.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from edgecosine.lab.figures import LEAST_SAMPLES, Figure, interval

_MOST_EXACT = 14
"""Up to this many pairs, all sign changes are counted; beyond it, `_DRAWN` random ones."""
_DRAWN = 10_000

Item = TypeVar("Item")


def balanced_order(items: Sequence[Item], repeat: int) -> tuple[Item, ...]:
    """The order of the items in repetition `repeat`, from 0 on: a row of Williams' square.

    Every second repetition reverses the one before, so that after each two all items have the same
    mean position. After `len(items)` repetitions, twice as many if that number is odd, each item
    was equally often at each position, and followed each other one equally often.

    Williams (1949), Experimental designs balanced for the estimation of residual effects of
    treatments.
    """
    count = len(items)
    if not count:
        return ()
    shift = repeat // 2 % (count if count % 2 else count // 2)
    zigzag = ((place + 1) // 2 * (1 if place % 2 else -1) for place in range(count))
    row = tuple(items[(step + shift) % count] for step in zigzag)
    return row[::-1] if repeat % 2 else row


def sign_flip_p(differences: Sequence[float]) -> float:
    """The p value of a one-sided paired permutation test, at least 1 / 2^n: the probability of a
    mean at least as large as that of `differences` if every sign were random.

    It is exact up to 14 differences, otherwise estimated from 10,000 seeded draws.
    """
    observed, n = math.fsum(differences), len(differences)
    # A sum of other signs that equals the observed one up to rounding is as large as it.
    least = observed - 1e-9 * math.fsum(map(abs, differences))
    if n <= _MOST_EXACT:
        flips = itertools.product((1, -1), repeat=n)
        sums = [math.fsum(map(float.__mul__, differences, map(float, signs))) for signs in flips]
        return sum(total >= least for total in sums) / len(sums)
    rng = random.Random(0)
    drawn = (math.fsum(d if rng.random() < 0.5 else -d for d in differences) for _ in range(_DRAWN))
    return (1 + sum(total >= least for total in drawn)) / (1 + _DRAWN)


def ratio_figure(
    ours: Sequence[float], theirs: Sequence[float], *, smaller_is_better: bool = False
) -> Figure:
    """The median of the pairs' ratios with its 95% interval, by bootstrap over the repetitions.

    The figure's p value tests "ours is better" on the logarithms of the ratios. Fewer than 5 pairs
    have neither interval nor p value.

    Raises ValueError when a number has no partner.
    """
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    figure = interval(ratios)
    if len(ratios) < LEAST_SAMPLES:
        return figure
    sign = -1.0 if smaller_is_better else 1.0
    return replace(figure, p=sign_flip_p([sign * math.log(ratio) for ratio in ratios]))
