"""Runs the cells of the map in processes of low priority, and records each when it ends."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Literal

from edgecosine.errors import LabError
from edgecosine.lab.bench.table import read_report
from edgecosine.lab.figures import Figure, Keep, Notify
from edgecosine.lab.regime_map.cells import MapCell, all_cells
from edgecosine.lab.regime_map.map_figures import map_cell, map_figures, over_best
from edgecosine.lab.regime_map.run_cell import Record, run_cell
from edgecosine.lab.simulation.costs import Costs
from edgecosine.lab.simulation.run_simulation import costs_record
from edgecosine.lab.simulation.texts import load_texts
from edgecosine.lab.worker_pool import worker_pool

Renewed = Literal["own", "all"]

_NICENESS = 10
_texts = functools.cache(load_texts)


def run_map(
    cells: Sequence[MapCell],
    costs: Costs,
    former: Sequence[Record],
    *,
    renewed: Renewed | None = None,
    repeats: int,
    workers: int,
    notify: Notify,
    keep: Keep,
) -> dict[str, Figure]:
    """Run the cells that `former` records lack; returns the figures of all records.

    All cells are of one recording. Figures and records are saved after each cell. With `renewed`
    the recorded cells are run again, too: EdgeCoSine's own policies, or all, with the constants
    that were tuned for the baselines.
    """
    order = all_cells(cells[0].texts)
    known = {run["cell"]: run for run in former}
    todo = [cell for cell in cells if renewed or cell.name not in known]
    call = functools.partial(_run, repeats=repeats, costs=costs, keeps_baselines=renewed != "all")
    with worker_pool(workers, _NICENESS) as pool:
        futures = [pool.submit(call, cell, known.get(cell.name)) for cell in todo]
        try:
            for number, future in enumerate(as_completed(futures), 1):
                record = future.result()
                known[record["cell"]] = record
                runs = [known[cell.name] for cell in order if cell.name in known]
                keep(map_figures(runs), runs, costs=costs_record(costs))
                notify(f"[{number}/{len(todo)}] {record['cell']}: {over_best(record):.2f}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return map_figures(list(known.values()))


def former_runs(record: Path, texts: str) -> list[Record]:
    """The cells of a report's file; none if there is no such file.

    Raises LabError for an unreadable file, or for cells of other texts.
    """
    runs: list[Record] = read_report(record)["runs"] if record.exists() else []
    if others := {map_cell(run).texts for run in runs} - {texts}:
        raise LabError(f"the cells of {record} have the texts of {', '.join(sorted(others))}")
    return runs


def _run(
    cell: MapCell, former: Record | None, *, repeats: int, costs: Costs, keeps_baselines: bool
) -> Record:
    texts = _texts(cell.temperature, cell.texts)
    return run_cell(cell, repeats, costs, texts, former, keeps_baselines=keeps_baselines)
