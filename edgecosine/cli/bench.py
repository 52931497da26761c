"""`edgecosine bench`: measurements, each a command of its own."""

from __future__ import annotations

from pathlib import Path

import click

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.running import run_command
from edgecosine.cli.up import split_cores


@click.group("bench")
def command() -> None:
    """Measure. Every measurement writes the same shape of JSON by --json FILE."""


@command.command("speculation")
@click.option("--ballast", type=click.IntRange(1, 256), default=12, show_default=True)
@click.option("--repeats", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--requests", type=click.IntRange(1, 1000), default=8, show_default=True,
              help="Requests in each run.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(8, 512), default=128, show_default=True)
@click.option("--json", "report", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE")
def speculation(
    ballast: int, repeats: int, requests: int, max_tokens: int, report: Path | None
) -> None:
    """Speculation against the target alone: one request and eight at a time, greedy and sampled."""
    from edgecosine.lab.figures import write_report
    from edgecosine.lab.speculation_bench import BenchSettings, run_speculation_bench

    log_to_stderr("warning")
    target_cores, drafter_cores = split_cores()
    settings = BenchSettings(
        ballast=ballast, repeats=repeats, requests=requests, max_tokens=max_tokens,
        target_cores=target_cores, drafter_cores=drafter_cores,
    )  # fmt: skip

    async def bench() -> None:
        figures, runs = await run_speculation_bench(settings, click.echo)
        for name, figure in figures.items():
            click.echo(f"{name}: {figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})")
        if report is not None:
            records = [run.record() for run in runs]
            write_report(report, figures, records, weather="loopback", ballast=ballast)

    run_command(bench())
