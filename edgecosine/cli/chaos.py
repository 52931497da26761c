"""`edgecosine bench chaos`: a cluster under faults, and what its askers got."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path

import click

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.running import run_command
from edgecosine.cli.up import split_cores
from edgecosine.errors import LabError
from edgecosine.lab.cluster import NetworkKind
from edgecosine.lab.figures import write_report


@click.command("chaos")
@click.option("--requests", type=click.IntRange(1, 100_000), default=300, show_default=True,
              help="How many to ask, six at a time.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="Another one, another schedule and other requests.")  # fmt: skip
@click.option("--faults", type=click.IntRange(0, 10_000),
              help="How many to inject. Default: one for five requests, and each kind "
              "once.")  # fmt: skip
@click.option("--network", type=click.Choice(["auto", "namespaces", "relays"]), default="auto",
              show_default=True, help="Namespaces need root on Linux; relays lose and double "
              "nothing.")  # fmt: skip
@click.option("--json", "report", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write counts, faults and whatever is wrong as data.")  # fmt: skip
def command(
    requests: int, seed: int, faults: int | None, network: NetworkKind, report: Path | None
) -> None:
    """Requests under kills, freezes, partitions, restarts, clock steps, a full disk and bad cables.

    Broker (Mosquitto), target and drafters are processes of their own. Faults come by a seeded
    schedule, by how many requests have ended, so that the load goes on during all of them. Texts
    are compared with those of the target alone before the first fault. Requests are of both
    temperatures, streamed or not, with one choice or two; some are asked twice, some given up.

    \b
    lost       ended without a final message
    doubled    two finals that differ in a byte (it ran twice), or the same
               again though nobody asked again and no connection was made
               anew between the two
    different  final, part of the stream or what the asker was given is not
               of the fault-free text, or an error
    hung       no end two minutes after the last fault

    Finals that come again equal to the byte over a new connection, or to who asked again, are
    counted as `repeated_finals`. In the end everything is asked for once more and must come as it
    was. The exit status is 1 when anything is lost, doubled, different or hung. Progress goes to
    stderr.
    """
    from edgecosine.lab.chaos.checker import DEFINITIONS
    from edgecosine.lab.chaos.faults import MEANING
    from edgecosine.lab.chaos.run_chaos import ChaosSettings, run_chaos

    log_to_stderr("error")
    target_cores, drafter_cores = split_cores()
    settings = ChaosSettings(
        requests=requests, seed=seed, faults=faults, network=network,
        target_cores=target_cores, drafter_cores=drafter_cores,
    )  # fmt: skip

    async def chaos() -> None:
        run = await run_chaos(settings, functools.partial(click.echo, err=True))
        for name, figure in run.figures.items():
            click.echo(f"{name}: {figure.value:.0f}")
        for kind, names in run.result.faulty.items():
            for name, reason in names.items():
                click.echo(f"{kind}: {name}: {reason}", err=True)
        if report is not None:
            write_report(
                report, run.figures, run.records, settings=asdict(settings), network=run.network,
                faults_left_out=dict(run.left_out), definitions={**DEFINITIONS, **MEANING},
            )  # fmt: skip
        if not run.result.is_clean:
            raise LabError("requests were lost, doubled, different or hung")

    run_command(chaos())
