"""`edgecosine bench fuzz`: coverage-guided fuzzing of all decoders of untrusted input."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path

import click

from edgecosine.cli.measuring import print_figures, report_option
from edgecosine.errors import LabError
from edgecosine.lab.figures import write_report
from edgecosine.lab.fuzz.targets import TARGETS


@click.command("fuzz")
@click.option("--inputs", type=click.IntRange(1), default=10_000_000, show_default=True,
              help="Number of inputs, divided among the targets.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(1), metavar="S",
              help="Time limit, divided among the targets.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 1 << 30), default=0, show_default=True,
              help="Seed of the generated inputs.")  # fmt: skip
@click.option("--target", "names", multiple=True, type=click.Choice(list(TARGETS)),
              help="Fuzz only this target; may be repeated.")  # fmt: skip
@click.option("--corpus", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="Folder of inputs to start from and to add new ones to.")  # fmt: skip
@click.option("--replay", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              metavar="FILE",
              help="Run one input through the target given by --target.")  # fmt: skip
@report_option("the figures and every target's run")
@click.pass_context
def command(
    context: click.Context, inputs: int, seconds: float | None, seed: int, names: tuple[str, ...],
    corpus: Path | None, replay: Path | None, report: Path | None,
) -> None:  # fmt: skip
    """Fuzz the decoders of frames, handshakes, messages, MQTT payloads and TXT records with
    libFuzzer.

    libFuzzer (through atheris) mutates valid inputs and keeps those that reach new code. Decoders
    may raise only documented errors, within bounded memory and time, and an accepted input must
    survive a round trip. Progress is written to stderr; the exit status is 1 when a target failed.
    """
    if replay is not None:
        if len(names) != 1:
            raise click.UsageError("--replay needs one --target")
        is_accepted = TARGETS[names[0]].attempt(replay.read_bytes())
        click.echo("accepted" if is_accepted else "refused")
        return
    from edgecosine.lab.fuzz.run_fuzz import FuzzSettings, figures_of, run_fuzz

    settings = FuzzSettings(names or tuple(TARGETS), inputs, seconds, seed, corpus)
    try:
        runs = run_fuzz(settings, functools.partial(click.echo, err=True))
    except LabError as error:
        raise click.ClickException(str(error)) from error
    figures = figures_of(runs)
    print_figures(figures, 0)
    if report is not None:
        write_report(report, figures, [asdict(run) for run in runs], inputs=inputs, seed=seed)
    if any(run.broken for run in runs):
        context.exit(1)
