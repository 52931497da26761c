"""The cells of the map: one point of hardware, network, text and load each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgecosine.errors import LabError
from edgecosine.lab.bench.cells import GENERALIST

Mix = Literal["one", "mixed", "within"]
"""one: every request is of one domain, another one in each repetition; mixed: the requests' domains
take turns; within: each text changes its domain every `texts.SEGMENT` tokens."""

PASS_S = 0.042
"""A target pass: five times that of the zoo's target with its ballast, as of a large target."""
ONE_DRAFTER = "edgecosine-one-drafter"
"""EdgeCoSine on a cluster of one drafter: the best single model for the cell's texts."""
SPECIALISTS = ("python", "manual", "legal", "home")
_RATIOS = (0.1, 0.2, 0.4, 0.02)
_CROSSED = (0.02, 0.4)
_PARTS = ("cooperation", "fusion", "routing", "siblings", "ahead", "adaptivity", "repetition")


@dataclass(frozen=True, slots=True)
class MapCell:
    """A point of the map; the defaults are the centre of CoSine's own setting."""

    sessions: int = 8
    ratio: float = 0.15
    """A drafter's step over a target's pass."""
    drafters: int = 4
    rtt_ms: float = 0.3
    mix: Mix = "mixed"
    temperature: float = 0.0

    @property
    def name(self) -> str:
        """Name in records and figures."""
        return (
            f"n{self.sessions}-ratio{self.ratio:g}-drafters{self.drafters}-rtt{self.rtt_ms:g}"
            f"-{self.mix}-t{self.temperature:g}"
        )

    @property
    def is_of_the_paper(self) -> bool:
        """Whether it lies in CoSine's setting: several specialists on a LAN, mixed domains."""
        return (
            0.1 <= self.ratio <= 0.2 and self.drafters >= 4 and self.rtt_ms < 1
            and self.mix == "mixed" and not self.temperature
        )  # fmt: skip

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of EdgeCoSine that are left out in turn, in some cells along the ratio."""
        lines = (MapCell(self.sessions, ratio) for ratio in (*_CROSSED, MapCell().ratio))
        return _PARTS if self in lines else ()

    def models(self) -> tuple[str, ...]:
        """EdgeCoSine's drafters: specialists from four on, below that the generalist and some."""
        order = (*SPECIALISTS, GENERALIST) if self.drafters >= 4 else (GENERALIST, *SPECIALISTS)
        return tuple(order[place % len(order)] for place in range(self.drafters))


def all_cells() -> tuple[MapCell, ...]:
    """Every cell, once, those of CoSine's setting first: lines through the centre along each axis,
    and two corners."""
    cells = dict.fromkeys(cell for sessions in (8, 1) for cell in _cells(MapCell(sessions)))
    return tuple(sorted(cells, key=lambda cell: not cell.is_of_the_paper))


def _cells(centre: MapCell) -> Iterator[MapCell]:
    yield centre
    yield from (replace(centre, ratio=ratio) for ratio in _RATIOS)
    yield replace(centre, mix="one")
    yield replace(centre, mix="within")
    yield replace(centre, temperature=0.8)
    yield from (replace(centre, drafters=number) for number in (1, 2, 8))
    yield from (replace(centre, rtt_ms=rtt_ms) for rtt_ms in (15.0, 50.0))
    quick, slow = _CROSSED
    yield replace(centre, ratio=quick, rtt_ms=50.0)
    yield replace(centre, ratio=slow, drafters=8)


def only(cells: Iterable[MapCell], names: Sequence[str]) -> tuple[MapCell, ...]:
    """The cells whose names contain one of `names`; all when there are none.

    Raises LabError when a name fits no cell.
    """
    cells = tuple(cells)
    for name in names:
        if not any(name in cell.name for cell in cells):
            raise LabError(f"no cell has {name} in its name; the first one is {cells[0].name}")
    return tuple(cell for cell in cells if not names or any(name in cell.name for name in names))
