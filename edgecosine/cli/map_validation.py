"""`edgecosine bench map-lab`: compares some cells of the map on real nodes and in simulation."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path

import click

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.measuring import network_option, print_figures, report_option
from edgecosine.cli.running import run_command
from edgecosine.cli.up import split_cores
from edgecosine.lab.cluster import NetworkKind
from edgecosine.lab.figures import keeping


@click.command("map-lab")
@click.option("--costs", "record", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              required=True, metavar="RECORD",
              help="Record of `bench simulation` with the costs of plans.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(1, 20), default=3, show_default=True,
              help="Repetitions of each load.")  # fmt: skip
@click.option("--requests", type=click.IntRange(4, 64), default=16, show_default=True,
              help="Requests of a run with 8 at a time.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(8, 128), default=96, show_default=True,
              help="Tokens in each answer.")  # fmt: skip
@click.option("--clusters", type=click.IntRange(1),
              help="Measure only this many of the five clusters.")  # fmt: skip
@network_option()
@report_option("figures and runs", each="cluster")
@click.option("--renew", is_flag=True,
              help="Simulate the loads of FILE again, and keep what was measured.")  # fmt: skip
def command(
    record: Path, repeats: int, requests: int, max_tokens: int, clusters: int | None,
    network: NetworkKind, report: Path | None, *, renew: bool,
) -> None:  # fmt: skip
    """Measure eight cells of `bench map` on real nodes whose passes and steps are slowed, and
    simulate the same loads. Takes minutes.
    """
    from edgecosine.lab.bench.table import read_report
    from edgecosine.lab.regime_map.validation import (
        SITES,
        MapValidation,
        simulate_again,
        validate_map,
        validation_figures,
    )
    from edgecosine.lab.simulation.run_simulation import costs_record, read_costs
    from edgecosine.lab.simulation.texts import load_texts

    log_to_stderr("warning")
    target_cores, drafter_cores = split_cores()
    settings = MapValidation(
        repeats, requests, max_tokens, network, target_cores, drafter_cores, SITES[:clusters]
    )

    async def validate() -> None:
        keep = keeping(report, settings=asdict(settings))
        notify = functools.partial(click.echo, err=True)
        if renew and report is not None:
            former = read_report(report)["runs"]
            costs = read_costs(report)
            runs = simulate_again(settings, costs, former, load_texts())
            figures = validation_figures(runs)
            keep(figures, runs, costs=costs_record(costs))
        else:
            figures = await validate_map(settings, read_costs(record), load_texts(), notify, keep)
        print_figures(figures)

    if renew and report is None:
        raise click.UsageError("--renew needs the FILE of --json")
    run_command(validate())
