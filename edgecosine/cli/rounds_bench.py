"""`edgecosine bench rounds`: measures the costs of a round besides forward passes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.measuring import repeats_option, report_option
from edgecosine.cli.running import run_command
from edgecosine.cli.up import split_cores
from edgecosine.lab.figures import keeping
from edgecosine.zoo import TARGET


@click.command("rounds")
@click.option("--model", default=TARGET, show_default=True, metavar="MODEL",
              help="The target's model: of the zoo, with ballast, or one with packaged drafters."
              )  # fmt: skip
@repeats_option()
@report_option()
def command(model: str, repeats: int, report: Path | None) -> None:
    """Measure rounds of one and of eight sessions on loopback, with drafts and without.

    round_overhead_ms: time of a round of one session, without its forward pass and the drafts that
    it waits for.

    round_overhead_8_ms: processor time of the target's event loop for a round of each of eight
    sessions. Linux only.
    """
    from edgecosine.lab.bench.run_rounds import RoundSettings, run_rounds, verdicts

    log_to_stderr("warning")
    settings = RoundSettings(model, repeats, *split_cores())

    async def measure() -> None:
        keep = keeping(report, network="loopback", settings=asdict(settings))
        for line in verdicts(await run_rounds(settings, click.echo, keep)):
            click.echo(line)

    run_command(measure())
