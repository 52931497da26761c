"""`edgecosine bench soak`: overloads a cluster for a long time."""

from __future__ import annotations

from pathlib import Path

import click

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.measuring import ballast_option, print_figures, report_option
from edgecosine.cli.running import run_command
from edgecosine.cli.up import split_cores
from edgecosine.lab.figures import Figure


@click.command("soak")
@click.option("--minutes", type=click.FloatRange(0.1), default=60.0, show_default=True,
              help="Duration of the overload.")  # fmt: skip
@click.option("--load", type=click.FloatRange(0.1, 100), default=1.2, show_default=True,
              help="Request rate relative to the capacity.")  # fmt: skip
@click.option("--normal-minutes", type=click.FloatRange(0.1), default=2.0, show_default=True,
              help="Duration of normal load, before and again after the overload.")  # fmt: skip
@ballast_option(8)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the requests.")
@report_option("the figures and every minute", each="minute")
def command(
    minutes: float, load: float, normal_minutes: float, ballast: int, seed: int, report: Path | None
) -> None:
    """Overload a cluster for a long time and check that it stays stable.

    Capacity is measured first. Clients differ in priority, deadline and cancellation, and one
    subscriber stops reading. Every request must end: served, refused with a time to retry,
    cancelled or expired. Memory must not grow, and latency under normal load must be the same
    before and after. Other load on the machine affects only the rates. The exit status is 1 when a
    request hung or ended with another error.
    """
    from edgecosine.lab.soak.run_soak import SoakSettings, run_soak

    log_to_stderr("warning")
    target_cores, drafter_cores = split_cores()
    settings = SoakSettings(
        minutes=minutes, load=load, normal_minutes=normal_minutes, ballast=ballast, seed=seed,
        target_cores=target_cores, drafter_cores=drafter_cores,
    )  # fmt: skip

    figures: dict[str, Figure] = {}

    async def soak() -> None:
        try:
            await run_soak(settings, figures, report, click.echo)
        finally:
            print_figures(figures, 2)

    run_command(soak())
    if broken := figures["soak_hung"].value + figures["soak_other_errors"].value:
        raise click.ClickException(f"{broken:.0f} requests hung or ended with other errors")
