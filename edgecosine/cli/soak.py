"""`edgecosine bench soak`: more than a cluster can do, for long."""

from __future__ import annotations

from pathlib import Path

import click

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.running import run_command
from edgecosine.cli.up import split_cores
from edgecosine.lab.figures import Figure


@click.command("soak")
@click.option("--minutes", type=click.FloatRange(0.1), default=60.0, show_default=True,
              help="Of overload.")  # fmt: skip
@click.option("--load", type=click.FloatRange(0.1, 100), default=1.2, show_default=True,
              help="What is asked, over what can be done.")  # fmt: skip
@click.option("--normal-minutes", type=click.FloatRange(0.1), default=2.0, show_default=True,
              help="Of normal service, once before and once after.")  # fmt: skip
@click.option("--ballast", type=click.IntRange(1, 256), default=8, show_default=True,
              help="Widen the target so that it costs what a larger one does.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "report", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write the figures and every minute as data, as it goes.")  # fmt: skip
def command(
    minutes: float, load: float, normal_minutes: float, ballast: int, seed: int, report: Path | None
) -> None:
    """Ask a cluster for more than it can do, for long, and see whether it minds.

    Capacity is measured first. Clients differ in priorities, deadlines and patience, and one
    subscriber stops reading. Every request must end, served or refused with a hint, cancelled or
    expired; memory must not grow, and normal service afterwards must be as before. Other work on
    the machine does no harm but to the rates. The exit status is 1 when a request hung or ended
    with another error.
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
            for name, figure in figures.items():
                click.echo(f"{name}: {figure.value:.2f}")

    run_command(soak())
    if broken := figures["soak_hung"].value + figures["soak_other_errors"].value:
        raise click.ClickException(f"{broken:.0f} requests hung or ended with other errors")
