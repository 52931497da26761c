"""`edgecosine bench routing`: how well requests are routed to drafters."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.measuring import print_figures, repeats_option, report_option
from edgecosine.errors import LabError
from edgecosine.lab.figures import keeping


@click.command("routing")
@click.option("--costs", "former", metavar="RECORD", required=True,
              type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Use the costs in this record of `bench simulation`.")  # fmt: skip
@repeats_option()
@click.option("--quick", "is_quick", is_flag=True, help="A few requests, to test the command.")
@report_option()
def command(former: Path, repeats: int, report: Path | None, *, is_quick: bool) -> None:
    """Measure how well requests are routed to drafters, on prompts that no model has seen.

    EdgeCoSine routes in simulated clusters, whose drafters have separate machines or share one.
    Weights by full information, a bandit and the prompt score alone route on the same texts. Takes
    minutes on one core.
    """
    from edgecosine.lab.routing.run_routing import (
        RoutingSettings,
        routing_figures,
        run_routing,
    )
    from edgecosine.lab.simulation.run_simulation import read_costs

    log_to_stderr("warning")
    settings = RoutingSettings(repeats)
    if is_quick:
        settings = RoutingSettings(repeats, warm_up=8, measured=8, cold=4, max_tokens=24)
    keep = keeping(report, settings=asdict(settings))
    try:
        runs = run_routing(settings, read_costs(former), click.echo, keep)
    except LabError as error:
        raise click.ClickException(str(error)) from error
    print_figures(routing_figures(runs))
