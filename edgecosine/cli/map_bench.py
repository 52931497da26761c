"""`edgecosine bench map`: simulates where speculation across machines pays, and which parts."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Literal

import click

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.measuring import print_figures, report_option
from edgecosine.errors import EdgecosineError
from edgecosine.lab.figures import keeping


@click.command("map")
@click.option("--costs", "record", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              required=True, metavar="RECORD",
              help="Record of `bench simulation` with the costs of event loops and links."
              )  # fmt: skip
@click.option("--texts", default="zoo", show_default=True, metavar="NAME",
              help="Recorded texts and drafts: of the zoo, or of smollm2-135m-instruct."
              )  # fmt: skip
@click.option("--only", "names", multiple=True, metavar="PART",
              help="Simulate only the cells whose names contain PART; may be repeated."
              )  # fmt: skip
@click.option("--repeats", type=click.IntRange(1, 5), default=5, show_default=True,
              help="Repetitions, each with prompts of its own.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1, 256), default=os.cpu_count() or 1,
              show_default=True, help="Number of processes, which have low priority.")  # fmt: skip
@report_option("figures and cells", each="cell")
@click.option("--resume", is_flag=True, help="Simulate only the cells that FILE lacks.")
@click.option("--renew", type=click.Choice(["own", "all"]),
              help="Simulate the cells of FILE again: EdgeCoSine's own policies, or all, with the "
              "constants that were tuned for the baselines.")  # fmt: skip
def command(
    record: Path, texts: str, names: tuple[str, ...], repeats: int, workers: int,
    report: Path | None, *, resume: bool, renew: Literal["own", "all"] | None,
) -> None:  # fmt: skip
    """Simulate a map of hardware, network, text and load: EdgeCoSine, and all baselines with
    constants that are tuned for each cell on other prompts.

    Forward passes take 42 ms, drafting steps 0.02 to 0.4 of that; texts and drafts are recorded.
    """
    from edgecosine.lab.regime_map.cells import all_cells, only
    from edgecosine.lab.regime_map.run_map import former_runs, run_map
    from edgecosine.lab.simulation.run_simulation import read_costs

    log_to_stderr("warning")
    if (resume or renew) and report is None:
        raise click.UsageError("--resume and --renew need the FILE of --json")
    try:
        figures = run_map(
            only(all_cells(texts), names),
            read_costs(record),
            former_runs(report, texts) if (resume or renew) and report is not None else [],
            renewed=renew, repeats=repeats, workers=workers,
            notify=functools.partial(click.echo, err=True), keep=keeping(report),
        )  # fmt: skip
    except EdgecosineError as error:
        raise click.ClickException(str(error)) from error
    print_figures(figures)
