"""`edgecosine bench`: measurements, each a command of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import click

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.running import run_command
from edgecosine.cli.up import split_cores
from edgecosine.errors import LabError
from edgecosine.lab.figures import Figure, write_report
from edgecosine.lab.table import fill, read_report, tables
from edgecosine.zoo import BALLAST


@click.group("bench")
def command() -> None:
    """Measure. Every measurement writes the same shape of JSON by --json FILE."""


_ballast = click.option(
    "--ballast", type=click.IntRange(1, 256), default=BALLAST, show_default=True,
    help="Widen the target so that it costs what a larger one does.",
)  # fmt: skip
_repeats = click.option("--repeats", type=click.IntRange(1, 100), default=5, show_default=True)
_report = click.option(
    "--json", "report", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write the figures and every run as data.",
)  # fmt: skip


@command.command("speculation")
@_ballast
@_repeats
@click.option("--requests", type=click.IntRange(1, 1000), default=8, show_default=True,
              help="Requests in each run.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(8, 512), default=128, show_default=True)
@_report
def speculation(
    ballast: int, repeats: int, requests: int, max_tokens: int, report: Path | None
) -> None:
    """Speculation against the target alone: one request and eight at a time, greedy and sampled."""
    from edgecosine.lab.speculation_bench import BenchSettings, run_speculation_bench

    log_to_stderr("warning")
    target_cores, drafter_cores = split_cores()
    settings = BenchSettings(
        ballast=ballast, repeats=repeats, requests=requests, max_tokens=max_tokens,
        target_cores=target_cores, drafter_cores=drafter_cores,
    )  # fmt: skip

    async def bench() -> None:
        figures, runs = await run_speculation_bench(settings, click.echo)
        _tell(figures)
        if report is not None:
            records = [run.record() for run in runs]
            write_report(report, figures, records, weather="loopback", ballast=ballast)

    run_command(bench())


@command.command("engine")
@_ballast
@_repeats
@_report
def engine(ballast: int, repeats: int, report: Path | None) -> None:
    """The engine against transformers, on the same weights and one thread of one core."""
    from edgecosine.lab.engine_bench import run_engine_bench

    log_to_stderr("warning")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    figures, runs = run_engine_bench(ballast, repeats, click.echo)
    _tell(figures)
    if report is not None:
        write_report(report, figures, runs, weather="none", ballast=ballast)


@command.command("exactness")
@click.option("--answers", type=click.IntRange(6, 100_000), default=1000, show_default=True,
              help="Answers to check, over all models.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(8, 128), default=128, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Another one, other storms.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, …")
@click.option("--quick", is_flag=True, help="About 40 answers, in a minute or so.")
@_report
def exactness(
    answers: int, max_tokens: int, seed: int, device: str, quick: bool, report: Path | None
) -> None:
    """Answers under random speculation against plain decoding by the same engine.

    Drafts are good, bad and hostile; sessions share passes, come, go and lose their slots; engines
    are replaced. Fails when an answer diverges where the policy is bitwise.
    """
    from edgecosine.lab.exactness_bench import ExactnessSettings, run_exactness_bench

    log_to_stderr("warning")
    settings = ExactnessSettings(40 if quick else answers, max_tokens, seed, device)
    found = run_exactness_bench(settings, click.echo)
    _tell(found.figures)
    if report is not None:
        write_report(report, found.figures, found.runs, weather="none", device=device, seed=seed)
    if found.broken:
        raise click.ClickException(f"not exact to the bit: {', '.join(found.broken)}")


@command.command("gpu")
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:1, …")
@click.option("--repeats", type=click.IntRange(1, 1000), default=20, show_default=True,
              help="Passes of each kind.")  # fmt: skip
@_report
def gpu(device: str, repeats: int, report: Path | None) -> None:
    """Decoding and verifying on a GPU against its memory bandwidth, quantised drafters, and how
    often rounding changes an answer. Nothing is downloaded; 20 GiB of GPU memory are needed."""
    from edgecosine.lab.gpu_bench import GpuSettings, run_gpu_bench

    log_to_stderr("warning")
    try:
        figures, runs = run_gpu_bench(GpuSettings(device=device, repeats=repeats), click.echo)
    except LabError as error:
        raise click.ClickException(str(error)) from error
    _tell(figures)
    if report is not None:
        write_report(report, figures, runs, weather="none", device=device)


def _tell(figures: Mapping[str, Figure]) -> None:
    for name, figure in figures.items():
        click.echo(f"{name}: {figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})")


_record = click.argument("record", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@command.command("plot")
@_record
@click.option("--out", "directory", type=click.Path(file_okay=False, path_type=Path),
              required=True, help="Where the figures go.")  # fmt: skip
@click.option("--format", "kind", type=click.Choice(["svg", "png"]), default="svg",
              show_default=True)  # fmt: skip
def plot(record: Path, directory: Path, kind: Literal["svg", "png"]) -> None:
    """Draw a record: latency against throughput, round trips, acceptance, one request's course."""
    from edgecosine.lab.plots import write_plots

    try:
        for path in write_plots(record, directory, kind):
            click.echo(path)
    except LabError as error:
        raise click.ClickException(str(error)) from error


@command.command("table")
@_record
@click.option("--into", "document", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Put it into this document, where its place is marked.")  # fmt: skip
def table(record: Path, document: Path | None) -> None:
    """Make the documentation's tables from a record."""
    made = tables(read_report(record))
    if document is None:
        click.echo(made)
        return
    try:
        document.write_text(fill(document.read_text(), str(record), made))
    except LabError as error:
        raise click.ClickException(str(error)) from error
