"""Options and output that measuring commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from edgecosine.lab.figures import Figure
from edgecosine.zoo import BALLAST

Option = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Decorates a command with an option."""


def report_option(what: str = "the figures and all runs", each: str = "") -> Option:
    """`--json FILE`, as `report`. `what` is written, after each cell, minute or other part `each`.

    A file that cannot be written is refused before anything is measured.
    """
    when = f", after each {each}" if each else ""
    return click.option(
        "--json", "report", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
        callback=_writable, help=f"Write {what} to FILE as JSON{when}.",
    )  # fmt: skip


def ballast_option(default: int = BALLAST) -> Option:
    """`--ballast`, the factor by which the zoo's target is widened."""
    return click.option(
        "--ballast", type=click.IntRange(1, 256), default=default, show_default=True,
        help="Widen the target by this factor, so that it costs as much as a larger model.",
    )  # fmt: skip


def repeats_option() -> Option:
    """`--repeats`."""
    return click.option(
        "--repeats", type=click.IntRange(1, 100), default=5, show_default=True, help="Repetitions."
    )


def network_option() -> Option:
    """`--network`: a NetworkKind."""
    return click.option(
        "--network", type=click.Choice(["auto", "namespaces", "relays"]), default="auto",
        show_default=True, help="Emulated network; namespaces need root on Linux.",
    )  # fmt: skip


def print_figures(figures: Mapping[str, Figure], digits: int = 2) -> None:
    """Print a line for each figure."""
    for name, figure in figures.items():
        click.echo(f"{name}: {figure.text(digits)}")


def _writable(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    """The path of a report.

    Raises BadParameter when no file can be written there.
    """
    if path is None:
        return None
    folder = path.absolute().parent
    if not folder.is_dir():
        raise click.BadParameter(f"{folder} is not a directory")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise click.BadParameter(f"{path} cannot be written")
    return path
