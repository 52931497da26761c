"""`edgecosine bench chaos`: injects faults into a cluster and checks the answers."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path

import click

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.measuring import print_figures, report_option
from edgecosine.cli.running import run_command
from edgecosine.cli.up import split_cores
from edgecosine.errors import LabError
from edgecosine.lab.chaos.faults import KINDS, MEANING, Kind
from edgecosine.lab.cluster import NetworkKind
from edgecosine.lab.figures import write_report


@click.command("chaos")
@click.option("--requests", type=click.IntRange(1, 100_000), default=300, show_default=True,
              help="Number of requests; six run at a time.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="Seed of the schedule and of the requests.")  # fmt: skip
@click.option("--faults", type=click.IntRange(0, 10_000),
              help="Number of faults. Default: one for every five requests, and every kind at "
              "least once.")  # fmt: skip
@click.option("--network", type=click.Choice(["auto", "namespaces", "relays"]), default="auto",
              show_default=True, help="Emulated network. Namespaces need root on Linux; relays "
              "cannot lose or duplicate packets.")  # fmt: skip
@click.option("--committee/--no-committee", default=False, show_default=True,
              help="The target leads a committee; members and their replicas have faults, "
              "too.")  # fmt: skip
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True,
              help="Only this kind of faults; may be repeated.")  # fmt: skip
@report_option("counts, faults and failed checks")
def command(
    requests: int,
    seed: int,
    faults: int | None,
    network: NetworkKind,
    committee: bool,
    kinds: tuple[Kind, ...],
    report: Path | None,
) -> None:
    """Run requests under kills, freezes, partitions, restarts, clock steps, a full disk and packet
    loss, and check every answer.

    Broker (Mosquitto), target and drafters run in separate processes. A seeded schedule injects
    faults by the number of ended requests, so that all of them occur under load. Texts are
    compared with those of the target alone, recorded before the first fault. Requests are greedy or
    sampled, streamed or not, with one or two choices; some are sent twice, some cancelled.

    \b
    lost       ended without a final message
    doubled    two finals that differ in a byte (it ran twice), or a
               repeated final without a repeated request or a new
               connection between the two
    different  the final, a part of the stream or the client's answer
               differs from the fault-free text, or is an error
    hung       not ended two minutes after the last fault

    Identical finals that are repeated for a new connection or a repeated request are counted as
    `repeated_finals`. At the end every request is sent once more, and its answer must be the same.
    The exit status is 1 when a request is lost, doubled, different or hung. Progress is written to
    stderr.
    """
    from edgecosine.lab.chaos.checker import DEFINITIONS
    from edgecosine.lab.chaos.run_chaos import MEMBERS, ChaosSettings, run_chaos

    log_to_stderr("error")
    target_cores, drafter_cores = split_cores()
    settings = ChaosSettings(
        requests=requests, seed=seed, faults=faults, kinds=kinds,
        network=network, members=MEMBERS if committee else (),
        target_cores=target_cores, drafter_cores=drafter_cores,
    )  # fmt: skip

    async def chaos() -> None:
        run = await run_chaos(settings, functools.partial(click.echo, err=True))
        print_figures(run.figures, 0)
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
