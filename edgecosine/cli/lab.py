"""`edgecosine lab`: runs a cluster on an emulated network, for experiments."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.measuring import ballast_option, network_option
from edgecosine.cli.options import CommandGroup
from edgecosine.cli.running import run_command
from edgecosine.cli.up import split_cores
from edgecosine.errors import ConfigError, LabError
from edgecosine.lab.change_network import ChangeRequest, listening, request_change, running_labs
from edgecosine.lab.cluster import LabPlan, NetworkKind, lab_cluster
from edgecosine.lab.network.conditions import NetworkConditions
from edgecosine.local.kernels import build_kernels
from edgecosine.models.packages import require_packages
from edgecosine.zoo import TARGET, drafter_names

Command = TypeVar("Command", bound=Callable[..., Any])


def _network_options(command: Command) -> Command:
    for option in (
        click.option("--rate-mbps", type=float, help="Bandwidth each way, in megabits per second."),
        click.option("--loss", type=float, default=0.0, help="Share of lost frames, 0 to 1."),
        click.option("--jitter-ms", type=float, default=0.0, help="Variation of the delay."),
        click.option("--delay-ms", type=float, default=0.0, help="Delay in each direction."),
    ):
        command = option(command)
    return command


@click.group("lab", cls=CommandGroup)
def command() -> None:
    """Run a cluster whose drafters are connected by emulated cables with delay, jitter, loss and
    limited bandwidth.

    As root on Linux every node runs in its own network namespace. Otherwise nodes are connected by
    relays on loopback, which carry only TCP and cannot lose packets.
    """


@command.command("up")
@click.option("--target", default=TARGET, show_default=True, help="Model to serve.")
@click.option(
    "--drafter", "drafters", multiple=True, help="Drafter model; may be repeated. Default: all "
    "of the zoo.",
)  # fmt: skip
@ballast_option()
@network_option()
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of losses and jitter.")
@click.option("--pass-ms", type=click.FloatRange(0), default=0.0, show_default=True,
              help="Shortest duration of a target's pass, as of a larger model.")  # fmt: skip
@click.option("--step-ms", type=click.FloatRange(0), default=0.0, show_default=True,
              help="Shortest duration of a drafter's step.")  # fmt: skip
@_network_options
def up(
    target: str, drafters: tuple[str, ...], ballast: int, network: NetworkKind, seed: int,
    pass_ms: float, step_ms: float, **fields: Any,
) -> None:  # fmt: skip
    """Run a cluster in the lab until interrupted."""
    require_packages(target)
    log_to_stderr("warning")
    build_kernels(click.echo)
    target_cores, drafter_cores = split_cores()
    plan = LabPlan(
        drafters=drafters or drafter_names(), target=target, ballast=ballast, network=network,
        seed=seed, conditions=_conditions(fields), target_cores=target_cores,
        drafter_cores=drafter_cores, least_pass_s=pass_ms / 1e3, least_step_s=step_ms / 1e3,
    )  # fmt: skip
    run_command(_up(plan))


async def _up(plan: LabPlan) -> None:
    async with lab_cluster(plan, click.echo) as cluster, listening(cluster):
        options = f"--broker {cluster.broker_url} --cluster {cluster.name}"
        click.echo(f"drafters: {', '.join(cluster.drafters)}")
        click.echo(f'ready. Try:  edgecosine ask "def main():" {options}')
        click.echo(f"             edgecosine status --watch {options}")
        click.echo("             edgecosine lab network --delay-ms 15")
        await asyncio.Event().wait()


@command.command("network")
@click.argument("drafters", nargs=-1)
@click.option("--cluster", help="Name of the lab's cluster; needed when several labs run.")
@_network_options
def set_conditions(drafters: tuple[str, ...], cluster: str | None, **fields: Any) -> None:
    """Set the network conditions of DRAFTERS in a running lab; of all drafters by default."""
    _request(cluster, ChangeRequest(drafters, conditions=_conditions(fields)))


@command.command("cut")
@click.argument("drafters", nargs=-1, required=True)
@click.option("--cluster", help="Name of the lab's cluster; needed when several labs run.")
@click.option("--mend", is_flag=True, help="Restore the cables instead.")
def cut(drafters: tuple[str, ...], cluster: str | None, *, mend: bool) -> None:
    """Cut the cables of DRAFTERS in a running lab; connections stall and are not closed."""
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
        running = ", ".join(labs) or "none; start one with `edgecosine lab up`"
        raise LabError(f"select one lab with --cluster; running: {running}")
    return paths[0]
