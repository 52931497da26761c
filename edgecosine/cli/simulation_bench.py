"""`edgecosine bench simulation`: many sessions, drafters and targets in virtual time."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path

import click

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.measuring import ballast_option, print_figures, report_option
from edgecosine.cli.up import split_cores
from edgecosine.errors import EdgecosineError
from edgecosine.lab.figures import keeping


@click.command("simulation")
@ballast_option()
@click.option("--validate", "is_validated", is_flag=True,
              help="Compare with the same loads on a real cluster on this machine.")  # fmt: skip
@click.option("--sweep/--no-sweep", "is_swept", default=True, show_default=True,
              help="Simulate 1 to 256 drafters and 1 to 1,000 sessions.")  # fmt: skip
@click.option("--sessions", type=click.IntRange(1, 1000), multiple=True,
              help="Sweep only loads with this many sessions; may be repeated.")  # fmt: skip
@click.option("--compare", "is_compared", is_flag=True,
              help="Compare all policies, and EdgeCoSine without each part; each drafter has its "
              "own processor.")  # fmt: skip
@click.option("--costs", "former", metavar="RECORD",
              type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Use the costs in this record instead of measuring them.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(1, 100), default=3, show_default=True,
              help="Repetitions of each compared load.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="Seed of the prompts.")  # fmt: skip
@click.option("--quick", "is_quick", is_flag=True, help="Fewer repetitions and a small sweep.")
@report_option()
def command(
    ballast: int, former: Path | None, repeats: int, seed: int, report: Path | None, *,
    sessions: tuple[int, ...], is_validated: bool, is_swept: bool, is_compared: bool,
    is_quick: bool,
) -> None:  # fmt: skip
    """Simulate many sessions, drafters and targets in virtual time, with the runtime's own code.

    Costs of forward passes, drafting steps, event loops and links are first measured on a cluster
    on this machine. Planning is timed in real time. Progress is written to stderr.
    """
    from edgecosine.lab.simulation.run_simulation import (
        SimulationSettings,
        read_costs,
        run_simulation_bench,
    )

    log_to_stderr("warning")
    target_cores, drafter_cores = split_cores()
    settings = SimulationSettings(
        ballast=ballast, seed=seed, is_quick=is_quick, is_validated=is_validated,
        is_swept=is_swept, sessions=sessions, is_compared=is_compared, repeats=repeats,
        target_cores=target_cores, drafter_cores=drafter_cores,
    )  # fmt: skip
    try:
        costs = None if former is None else read_costs(former)
        notify = functools.partial(click.echo, err=True)
        keep = keeping(report, settings=asdict(settings))
        print_figures(run_simulation_bench(settings, costs, notify, keep))
    except EdgecosineError as error:
        raise click.ClickException(str(error)) from error
