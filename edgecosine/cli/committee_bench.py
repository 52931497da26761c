"""`edgecosine bench committee`: measures a committee of two targets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.measuring import report_option
from edgecosine.cli.running import run_command
from edgecosine.lab.figures import keeping


@click.command("committee")
@click.option("--answers", type=click.IntRange(1, 1000), default=56, show_default=True,
              help="Answers in each of nine cells: lists of 4, 16 and all tokens, temperature 0, "
              "0.8 and 1.")  # fmt: skip
@click.option("--speed-answers", type=click.IntRange(1, 100), default=12, show_default=True,
              help="Answers with drafters and without, one at a time.")  # fmt: skip
@report_option()
def command(answers: int, speed_answers: int, report: Path | None) -> None:
    """Measure a committee of two specialists of the zoo, python and legal.

    Its texts are compared with those of one process that averages whole distributions. Its speed is
    measured with members of `--ballast 256`. Losses and the errors of SpecFed's reconstructions
    come from held-out texts.
    """
    from edgecosine.lab.bench.committee.run_committee import CommitteeSettings, run_committee_bench

    log_to_stderr("warning")
    settings = CommitteeSettings(answers=answers, speed_answers=speed_answers)
    keep = keeping(report, settings=asdict(settings))
    run_command(run_committee_bench(settings, click.echo, keep))
