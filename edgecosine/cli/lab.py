"""`edgecosine lab`: a cluster on a network with weather, to play with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.running import run_command
from edgecosine.cli.up import split_cores
from edgecosine.errors import ConfigError, LabError
from edgecosine.lab.change_network import ChangeRequest, listening, request_change, running_labs
from edgecosine.lab.cluster import LabPlan, NetworkKind, lab_cluster
from edgecosine.lab.network.conditions import NetworkConditions
from edgecosine.models.packages import require_packages
from edgecosine.zoo import BALLAST, TARGET, drafter_names

Command = TypeVar("Command", bound=Callable[..., Any])


def _network_options(command: Command) -> Command:
    for option in (
        click.option("--rate-mbps", type=float, help="Megabits per second, each way."),
        click.option("--loss", type=float, default=0.0, help="Share of frames lost, 0 to 1."),
        click.option("--jitter-ms", type=float, default=0.0, help="Delays differ by so much."),
        click.option("--delay-ms", type=float, default=0.0, help="One way; a round trip has two."),
    ):
        command = option(command)
    return command


@click.group("lab")
def command() -> None:
    """A cluster whose drafters hang on cables with delay, jitter, loss and a rate.

    As root on Linux every node has a network namespace of its own; elsewhere relays stand between
    processes of this machine, which carry TCP alone and lose nothing.
    """


@command.command("up")
@click.option("--target", default=TARGET, show_default=True, help="Model that is served.")
@click.option(
    "--drafter", "drafters", multiple=True, help="Model that drafts; may be repeated. Default: all "
    "of the zoo's.",
)  # fmt: skip
@click.option("--ballast", type=click.IntRange(1, 256), default=BALLAST, show_default=True)
@click.option("--network", type=click.Choice(["auto", "namespaces", "relays"]), default="auto",
              show_default=True)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Decides what is lost.")
@_network_options
def up(
    target: str, drafters: tuple[str, ...], ballast: int, network: NetworkKind, seed: int,
    **fields: Any,
) -> None:  # fmt: skip
    """Run a cluster in the lab until interrupted."""
    require_packages(target)
    log_to_stderr("warning")
    target_cores, drafter_cores = split_cores()
    plan = LabPlan(
        drafters=drafters or drafter_names(), target=target, ballast=ballast, network=network,
        seed=seed, conditions=_conditions(fields), target_cores=target_cores,
        drafter_cores=drafter_cores,
    )  # fmt: skip
    run_command(_up(plan))


async def _up(plan: LabPlan) -> None:
    async with lab_cluster(plan, click.echo) as cluster, listening(cluster):
        options = f"--broker {cluster.broker_url} --cluster {cluster.name}"
        click.echo(f"drafters: {', '.join(cluster.drafters)}")
        click.echo(f'ready. Try:  edgecosine ask "def main():" {options}')
        click.echo(f"             edgecosine status --watch {options}")
        click.echo("             edgecosine lab weather --delay-ms 15")
        await asyncio.Event().wait()


@command.command("weather")
@click.argument("drafters", nargs=-1)
@click.option("--cluster", help="Of which lab; needed when several run.")
@_network_options
def weather(drafters: tuple[str, ...], cluster: str | None, **fields: Any) -> None:
    """Change the weather of DRAFTERS in a running lab, of all when none are named."""
    _request(cluster, ChangeRequest(drafters, conditions=_conditions(fields)))


@command.command("cut")
@click.argument("drafters", nargs=-1, required=True)
@click.option("--cluster", help="Of which lab; needed when several run.")
@click.option("--mend", is_flag=True, help="Make the cables whole again instead.")
def cut(drafters: tuple[str, ...], cluster: str | None, *, mend: bool) -> None:
    """Cut the cables of DRAFTERS in a running lab; nobody is told."""
    _request(cluster, ChangeRequest(drafters, is_cut=not mend))


def _conditions(fields: dict[str, Any]) -> NetworkConditions:
    try:
        return NetworkConditions(**fields)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _request(cluster: str | None, change: ChangeRequest) -> None:
    try:
        for name, state in request_change(_only_lab(cluster), change).items():
            click.echo(f"{name}: {state}")
    except LabError as error:
        raise click.ClickException(str(error)) from error


def _only_lab(cluster: str | None) -> Path:
    labs = running_labs()
    paths = [path for name, path in labs.items() if cluster in (None, name)]
    if len(paths) != 1:
        there = ", ".join(labs) or "none; start one by `edgecosine lab up`"
        raise LabError(f"name one lab by --cluster; running: {there}")
    return paths[0]
