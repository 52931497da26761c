"""`edgecosine bench plot` and `bench table`: plots and tables of a benchmark's record."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from edgecosine.errors import LabError
from edgecosine.lab.bench.staleness import staleness
from edgecosine.lab.bench.table import fill, read_report, tables

_record = click.argument("record", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@click.command("plot")
@_record
@click.option("--out", "directory", type=click.Path(file_okay=False, path_type=Path),
              required=True, help="Directory for the plots.")  # fmt: skip
@click.option("--format", "kind", type=click.Choice(["svg", "png"]), default="svg",
              show_default=True, help="File format.")  # fmt: skip
def plot(record: Path, directory: Path, kind: Literal["svg", "png"]) -> None:
    """Plot a record: latency over throughput, round-trip times, acceptance, one timeline."""
    from edgecosine.lab.bench.plots import write_plots

    try:
        for path in write_plots(record, directory, kind):
            click.echo(path)
    except LabError as error:
        raise click.ClickException(str(error)) from error


@click.command("table")
@_record
@click.option("--into", "document", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Replace the marked table in this document.")  # fmt: skip
def table(record: Path, document: Path | None) -> None:
    """Print the documentation's tables of a record.

    Standard error says whether the code that the record describes has changed since its commit.
    """
    read = read_report(record)
    made = tables(read)
    click.echo(staleness(read), err=True)
    if document is None:
        click.echo(made)
        return
    try:
        document.write_text(fill(document.read_text(), str(record), made))
    except LabError as error:
        raise click.ClickException(str(error)) from error
