"""`edgecosine up`: runs a whole cluster on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import click

from edgecosine import models, zoo
from edgecosine.cli.access import environment_access, environment_variable, no_password
from edgecosine.cli.exit_status import LOG_LEVEL_VARIABLE
from edgecosine.cli.key import default_keys
from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.running import run_command
from edgecosine.config import DEFAULT_CLUSTER
from edgecosine.discovery.static import parse_listen
from edgecosine.engine.options import Exactness
from edgecosine.errors import AddressTaken, ConfigError, ModelUnavailable
from edgecosine.local.cluster import LocalCluster
from edgecosine.local.cluster_plan import ClusterPlan, local_plan
from edgecosine.local.kernels import build_kernels
from edgecosine.models.packages import require_packages
from edgecosine.node.links.link_policy import is_loopback
from edgecosine.security.api_keys import ApiKeys

_LOOPBACK: Final = "127.0.0.1"
_HTTP_PORT: Final = 8080
_HTTP_PORTS: Final = 10


@click.command("up")
@click.option(
    "--target", default=models.DEFAULT_TARGET, show_default=True,
    help="Model to serve; `target`: the tiny model of the zoo.",
)  # fmt: skip
@click.option(
    "--drafter", "drafters", multiple=True, help="Drafter model; may be repeated. Default: all "
    "that come with EdgeCoSine for this target.",
)  # fmt: skip
@click.option(
    "--ballast", type=click.IntRange(1, 256),
    help="Widen the target by this factor, so that it costs as much as a larger model. "
    f"Default: {zoo.BALLAST} for the zoo's target, else 1.",
)  # fmt: skip
@click.option(
    "--exactness", type=click.Choice(["auto", "bitwise", "rounding"]), default="auto",
    show_default=True, help="Guarantee of the target; see `edgecosine node --help`.",
)  # fmt: skip
@click.option(
    "--cluster", envvar="EDGECOSINE_CLUSTER", show_envvar=True, default=DEFAULT_CLUSTER,
    show_default=True, help="Name of the cluster.",
)  # fmt: skip
@click.option(
    "--broker",
    envvar="EDGECOSINE_BROKER",
    show_envvar=True,
    metavar="URL",
    callback=no_password,
    help="Use this broker instead of starting one.",
)
@click.option("--broker-port", type=click.IntRange(1, 65535), default=1883, show_default=True,
              help="Port of the started broker.")  # fmt: skip
@click.option(
    "--http", metavar="HOST:PORT",
    help="Address of the OpenAI API over HTTP; `none`: no HTTP.  [default: 127.0.0.1:8080, or the "
    "next free port]",
)  # fmt: skip
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info",
    show_default=True, envvar=LOG_LEVEL_VARIABLE, show_envvar=True,
    help="Lowest level of log lines.",
)  # fmt: skip
def command(
    target: str, drafters: tuple[str, ...], ballast: int | None, exactness: Exactness, cluster: str,
    broker: str | None, broker_port: int, http: str | None, log_level: str,
) -> None:  # fmt: skip
    """Run broker, target and drafters on this machine until interrupted. All listen on loopback,
    unless --http says otherwise.

    The target runs on the first processor, and the drafters share the others.
    """
    require_packages(target)
    if http and http != "none":
        check_exposure(http, cluster)
    log_to_stderr(log_level)
    target_cores, drafter_cores = split_cores()
    is_zoo = target == zoo.TARGET
    ballast = ballast or (zoo.BALLAST if is_zoo else 1)
    if not drafters:
        drafters = zoo.drafter_names() if is_zoo else models.drafters_of(target)
    _fetch(target)
    build_kernels(click.echo)
    http = http or _default_http()
    plan = local_plan(
        target, drafters, cluster=cluster, ballast=ballast,
        target_cores=target_cores, drafter_cores=drafter_cores, broker=broker,
        broker_port=broker_port, exactness=exactness,
        access=environment_access(broker) if broker else None, http=http,
    )  # fmt: skip
    if ballast > 1:
        click.echo(
            f"ballast: the target is widened {ballast} times, to cost as much as a larger model"
        )
    run_command(_up(plan, http))


def check_exposure(http: str, cluster: str) -> None:
    """Raises ConfigError where anybody on the network could send requests."""
    given = os.environ.get(environment_variable("--http-keys"))
    keys = Path(given) if given else default_keys(cluster)
    is_exposed = not is_loopback(parse_listen(http, key="http").host)
    if is_exposed and (keys is None or not ApiKeys(keys)):
        raise ConfigError(
            "http", http, "an address of this machine, or keys by `edgecosine key create NAME`"
        )


def _fetch(target: str) -> None:
    """Fetch the target before the nodes start, so that progress is visible."""
    try:
        models.obtain(target)
    except ModelUnavailable as error:
        raise click.ClickException(
            f"{error}\nwithout a download, `edgecosine up --target {zoo.TARGET}` serves the tiny "
            "models that come with EdgeCoSine"
        ) from error


def split_cores() -> tuple[str, str]:
    """Core lists of the target and of the drafters; empty (not pinned) on a single core."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return "", ""
    return str(cores[0]), ",".join(map(str, cores[1:]))


def _default_http() -> str:
    """The first free address; `none` where the packages of the extra `http` are missing."""
    if find_spec("uvicorn") is None or find_spec("starlette") is None:
        click.echo("HTTP: off, install it by: pip install 'edgecosine[http]'")
        return "none"
    for port in range(_HTTP_PORT, _HTTP_PORT + _HTTP_PORTS):
        with contextlib.suppress(OSError), socket.create_server((_LOOPBACK, port)):
            return f"{_LOOPBACK}:{port}"
    raise click.ClickException(
        f"the ports {_HTTP_PORT} to {_HTTP_PORT + _HTTP_PORTS - 1} are in use: give --http "
        "HOST:PORT, or --http none"
    )


async def _up(plan: ClusterPlan, http: str) -> None:
    try:
        await _serve(plan, http)
    except AddressTaken as taken:
        raise AddressTaken(
            taken.key, f"{taken.value}",
            f"give --broker-port PORT, or --broker mqtt://{taken.value} to use the broker there",
        ) from taken  # fmt: skip


async def _serve(plan: ClusterPlan, http: str) -> None:
    cluster = LocalCluster(plan, click.echo)
    click.echo(f"logs: {cluster.logs}")
    async with cluster:
        if http != "none":
            click.echo(f"page: http://{http}/   OpenAI API: http://{http}/v1")
        options = f"--broker {cluster.broker_url} --cluster {plan.cluster}"
        click.echo(f'ready. Try:  edgecosine ask --chat "Why is the sky blue?" {options}')
        try:
            await asyncio.Event().wait()
        finally:
            click.echo("stopping the nodes")
