"""Which recorded texts a run of the map uses: no text of a sweep is measured, and repetitions have
texts of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgecosine.lab.regime_map.cells import SPECIALISTS, MapCell
from edgecosine.lab.simulation.texts import NUM_PROMPT, Texts

SWEPT = 6
"""The first texts of each domain, which serve to tune baselines and nothing else."""
PER_REPEAT = 5
"""Texts of each domain in a repetition; there are recorded texts for five repetitions."""
ONE_AT_A_TIME = 2
"""Texts of each domain in a sweep or repetition of single requests."""
ONE_DOMAIN = 12
"""Texts in a repetition of one domain."""
SEGMENT = 24
"""Tokens between two changes of domain within a text."""


def swept(texts: Texts, cell: MapCell) -> Texts:
    """The texts of the sweep of a cell's baselines."""
    return _mixed(texts, cell, range(SWEPT if cell.sessions > 1 else ONE_AT_A_TIME))


def measured(texts: Texts, cell: MapCell, repeat: int) -> Texts:
    """The texts of a repetition, from 0 on."""
    if cell.mix == "one":
        start = SWEPT + ONE_DOMAIN * (repeat // len(SPECIALISTS))
        return texts.only(_of(texts, domain_of(repeat))[start : start + ONE_DOMAIN])
    start = SWEPT + PER_REPEAT * repeat
    number = PER_REPEAT if cell.sessions > 1 else ONE_AT_A_TIME
    return _mixed(texts, cell, range(start, start + number))


def domain_of(repeat: int) -> str:
    """The domain of a repetition of one domain, which is also the name of its specialist."""
    return SPECIALISTS[repeat % len(SPECIALISTS)]


def _mixed(texts: Texts, cell: MapCell, places: range) -> Texts:
    chosen = texts.only([_of(texts, domain)[place] for place in places for domain in SPECIALISTS])
    return spliced(chosen) if cell.mix == "within" else chosen


def _of(texts: Texts, domain: str) -> list[int]:
    return [number for number, other in enumerate(texts.domains) if other == domain]


def spliced(texts: Texts) -> Texts:
    """Texts that change their domain every SEGMENT tokens, pieced together from as many as there
    are domains in turn. Drafters guess as they did in the pieces' own texts."""
    domains = len(SPECIALISTS)
    numbers = np.arange(len(texts.lists))[:, None]
    places = np.arange(texts.longest_answer)[None, :]
    source = numbers - numbers % domains + (numbers + places // SEGMENT) % domains
    tokens = texts.tokens.copy()
    tokens[:, NUM_PROMPT:] = texts.tokens[source, NUM_PROMPT + places]
    return replace(
        texts,
        tokens=tokens,
        guesses=texts.guesses[:, source, places],
        shares=texts.shares[:, source, places],
    )
