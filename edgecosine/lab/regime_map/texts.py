"""Selects the recorded texts of a run of the map. Sweeps and repetitions have separate texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgecosine.lab.regime_map.cells import MapCell
from edgecosine.lab.simulation.texts import Texts

SWEPT = 6
"""Number of texts of each domain that serve only to tune baselines: its first ones."""
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
        start = SWEPT + ONE_DOMAIN * (repeat // len(cell.specialists))
        return texts.only(_of(texts, domain_of(cell, repeat))[start : start + ONE_DOMAIN])
    start = SWEPT + PER_REPEAT * repeat
    number = PER_REPEAT if cell.sessions > 1 else ONE_AT_A_TIME
    return _mixed(texts, cell, range(start, start + number))


def domain_of(cell: MapCell, repeat: int) -> str:
    """The domain of a repetition that has one domain, which is also the name of its specialist."""
    return cell.specialists[repeat % len(cell.specialists)]


def best_drafter(texts: Texts, cell: MapCell, domain: str = "") -> str:
    """The drafter whose most probable token is right most often on the sweep's texts, or on those
    of one domain among them."""
    known = swept(texts, replace(cell, sessions=2))
    is_within = np.arange(known.longest_answer) < np.array(known.ends)[:, None]
    is_wanted = np.array([domain in ("", other) for other in known.domains])[:, None]
    is_right = (known.guesses[..., 0] == known.answers) & is_within & is_wanted
    return known.drafters[int(is_right.sum((1, 2)).argmax())]


def _mixed(texts: Texts, cell: MapCell, places: range) -> Texts:
    chosen = texts.only(
        [_of(texts, domain)[place] for place in places for domain in cell.specialists]
    )
    return spliced(chosen, len(cell.specialists)) if cell.mix == "within" else chosen


def _of(texts: Texts, domain: str) -> list[int]:
    return [number for number, other in enumerate(texts.domains) if other == domain]


def spliced(texts: Texts, domains: int) -> Texts:
    """Texts that change their domain every SEGMENT tokens: pieces of as many texts as there are
    domains take turns. Guesses are those that drafters made in the pieces' own texts. A text ends
    where its next token would be beyond the end of a piece's own text."""
    numbers = np.arange(len(texts.prompts))[:, None]
    places = np.arange(texts.longest_answer)[None, :]
    source = numbers - numbers % domains + (numbers + places // SEGMENT) % domains
    is_over = places >= np.array(texts.ends)[source]
    ends = np.where(is_over.any(1), is_over.argmax(1), texts.longest_answer)
    return replace(
        texts,
        answers=texts.answers[source, places],
        ends=tuple(ends.tolist()),
        guesses=texts.guesses[:, source, places],
        shares=texts.shares[:, source, places],
    )
