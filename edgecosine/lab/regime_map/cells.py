"""The cells of the map: one point of hardware, network, text and load each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from edgecosine import models
from edgecosine.errors import LabError
from edgecosine.lab.bench.cells import GENERALIST
from edgecosine.lab.distill.prompts import DOMAINS
from edgecosine.lab.simulation.texts import RECORDED, ZOO

Mix = Literal["one", "mixed", "within"]
"""one: every request is of one domain, another one in each repetition; mixed: the requests' domains
take turns; within: each text changes its domain every `texts.SEGMENT` tokens."""

PASS_S = 0.042
"""Duration of a target's forward pass: five times that of the zoo's target with its ballast."""
ALL_REMOTE = "edgecosine-all-remote"
"""EdgeCoSine without a drafter beside the target, in the cells where it has one."""
ONE_DRAFTER = "edgecosine-one-drafter"
"""EdgeCoSine on a cluster of one drafter, whose model is the best one for the cell's texts."""
SPECIALISTS: Final[Mapping[str, tuple[str, ...]]] = {
    ZOO: ("python", "manual", "legal", "home"),
    models.DEFAULT_TARGET: DOMAINS,
}
"""The domains of each recording's texts, which are also the names of their specialists."""
_RATIOS = (0.1, 0.2, 0.4, 0.02)
_CROSSED = (0.02, 0.4)
_PARTS = ("cooperation", "fusion", "routing", "siblings", "ahead", "adaptivity", "repetition")


@dataclass(frozen=True, slots=True)
class MapCell:
    """A point of the map; the defaults are the centre of CoSine's published setting."""

    sessions: int = 8
    ratio: float = 0.15
    """Duration of a drafter's step over that of a target's forward pass."""
    drafters: int = 4
    rtt_ms: float = 0.3
    mix: Mix = "mixed"
    temperature: float = 0.0
    texts: str = ZOO
    """The recording of texts and drafts, one of `simulation.texts.RECORDED`."""

    @property
    def specialists(self) -> tuple[str, ...]:
        """The specialists of the cell's domains."""
        return SPECIALISTS[self.texts]

    @property
    def name(self) -> str:
        """Name in records and figures."""
        return (
            f"n{self.sessions}-ratio{self.ratio:g}-drafters{self.drafters}-rtt{self.rtt_ms:g}"
            f"-{self.mix}-t{self.temperature:g}"
        )

    @property
    def is_of_the_paper(self) -> bool:
        """Whether the cell is in CoSine's setting: several specialists on a LAN, mixed domains."""
        return (
            0.1 <= self.ratio <= 0.2 and self.drafters >= 4 and self.rtt_ms < 1
            and self.mix == "mixed" and not self.temperature
        )  # fmt: skip

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of EdgeCoSine that are left out one at a time in this cell.

        They are measured in some cells along the ratio; of the real model, only at the centre.
        """
        centre = MapCell(self.sessions, texts=self.texts)
        ratios = (*_CROSSED, centre.ratio) if self.texts == ZOO else (centre.ratio,)
        lines = (replace(centre, ratio=ratio) for ratio in ratios)
        return _PARTS if self in lines else ()

    @property
    def beside(self) -> tuple[str, ...]:
        """EdgeCoSine's drafter on the target's own accelerator: the one of `colocated`, where a
        round trip takes longer than a pass."""
        return (GENERALIST,) if self.rtt_ms > 1e3 * PASS_S else ()

    def models(self) -> tuple[str, ...]:
        """Models of EdgeCoSine's remote drafters: four or more begin with the specialists, fewer
        with the generalist."""
        known = self.specialists
        order = (*known, GENERALIST) if self.drafters >= 4 else (GENERALIST, *known)
        return tuple(order[place % len(order)] for place in range(self.drafters))


def all_cells(texts: str = ZOO) -> tuple[MapCell, ...]:
    """Every cell once: lines through the centre along each axis, and two corners.

    Those of CoSine's setting come first. The real model has the lines along text, temperature and
    drafters and the ends of the ratio's line; the effect of the network is measured on the zoo.

    Raises LabError for texts that are not recorded.
    """
    if texts not in RECORDED:
        raise LabError(f"there are no recorded texts {texts}; there are {', '.join(RECORDED)}")
    cells = dict.fromkeys(
        cell for sessions in (8, 1) for cell in _cells(MapCell(sessions, texts=texts))
    )
    kept = [cell for cell in cells if texts == ZOO or _depends_on_texts(cell)]
    return tuple(sorted(kept, key=lambda cell: not cell.is_of_the_paper))


def _depends_on_texts(cell: MapCell) -> bool:
    centre = MapCell(cell.sessions, texts=cell.texts)
    is_end = cell.ratio in _CROSSED and replace(cell, ratio=centre.ratio) == centre
    return cell.rtt_ms == centre.rtt_ms and (is_end or cell.ratio == centre.ratio)


def _cells(centre: MapCell) -> Iterator[MapCell]:
    most = 8 if centre.texts == ZOO else 1 + len(centre.specialists)
    yield centre
    yield from (replace(centre, ratio=ratio) for ratio in _RATIOS)
    yield replace(centre, mix="one")
    yield replace(centre, mix="within")
    yield replace(centre, temperature=0.8)
    yield from (replace(centre, drafters=number) for number in (1, 2, most))
    yield from (replace(centre, rtt_ms=rtt_ms) for rtt_ms in (15.0, 50.0))
    quick, slow = _CROSSED
    yield replace(centre, ratio=quick, rtt_ms=50.0)
    yield replace(centre, ratio=slow, drafters=most)


def only(cells: Iterable[MapCell], names: Sequence[str]) -> tuple[MapCell, ...]:
    """The cells whose names contain one of `names`; all when there are none.

    Raises LabError when a name occurs in no cell's name.
    """
    cells = tuple(cells)
    for name in names:
        if not any(name in cell.name for cell in cells):
            raise LabError(f"no cell has {name} in its name; the first one is {cells[0].name}")
    return tuple(cell for cell in cells if not names or any(name in cell.name for name in names))
