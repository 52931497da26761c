"""`edgecosine bench fuzz`: what strangers' bytes can do, by coverage."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path

import click

from edgecosine.errors import LabError
from edgecosine.lab.figures import write_report
from edgecosine.lab.fuzz.targets import TARGETS


@click.command("fuzz")
@click.option("--inputs", type=click.IntRange(1), default=10_000_000, show_default=True,
              help="To try, shared by the targets.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(1), metavar="S",
              help="End after so long, even with fewer inputs.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 1 << 30), default=0, show_default=True,
              help="Another one, other inputs.")  # fmt: skip
@click.option("--target", "names", multiple=True, type=click.Choice(list(TARGETS)),
              help="This one alone; may be repeated.")  # fmt: skip
@click.option("--corpus", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="Start from what a former run found, and keep what this one finds.")  # fmt: skip
@click.option("--replay", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              metavar="FILE",
              help="Try this one input on the target, and show what breaks.")  # fmt: skip
@click.option("--json", "report", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write the figures and every target's run as data.")  # fmt: skip
@click.pass_context
def command(
    context: click.Context, inputs: int, seconds: float | None, seed: int, names: tuple[str, ...],
    corpus: Path | None, replay: Path | None, report: Path | None,
) -> None:  # fmt: skip
    """Frames, handshakes, messages, MQTT payloads and TXT records that nobody sane would send.

    libFuzzer, by atheris, changes valid inputs and keeps what reaches new code. Nothing but the
    documented errors may be raised, memory and time of each input are bounded, and what is accepted
    must come back as it was. Progress goes to stderr; the exit status is 1 when something broke.
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
    for name, figure in figures.items():
        click.echo(f"{name}: {figure.value:.0f}")
    if report is not None:
        write_report(report, figures, [asdict(run) for run in runs], inputs=inputs, seed=seed)
    if any(run.broken for run in runs):
        context.exit(1)
