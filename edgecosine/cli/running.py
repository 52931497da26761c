"""Options of commands that use a broker, and running a command's coroutine."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import re
import signal
import socket
import sys
import unicodedata
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click
import uvloop

from edgecosine.cli.access import (
    BROKER_OPTIONS,
    CREDENTIALS_OPTION,
    broker_access,
    environment_variable,
    no_password,
    node_credentials,
)
from edgecosine.cli.exit_status import INTERRUPTED, TERMINATED, end_of
from edgecosine.config import DEFAULT_BROKER, DEFAULT_CLUSTER
from edgecosine.errors import ConfigError
from edgecosine.mqtt.broker_address import BrokerAddress

Command = TypeVar("Command", bound=Callable[..., Any])


def broker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add options to a command; it receives `broker`, a BrokerAddress, and `cluster`."""

    @functools.wraps(command)
    def with_broker(*, broker: str, cluster: str, credentials: str | None, **options: Any) -> None:
        address, _ = resolve_access(broker, cluster, credentials, options)
        command(broker=address, cluster=cluster, **options)

    return access_options(with_broker, DEFAULT_BROKER)


def resolve_access(
    broker: str | None, cluster: str, credentials: str | None, options: dict[str, Any]
) -> tuple[BrokerAddress | None, Path | None]:
    """The broker's address and the directory of the credentials, each None without one; removes
    their options from `options`.

    Raises UsageError.
    """
    access = {name: options.pop(name) for name in tuple(options) if name in _ACCESS}
    try:
        ours = node_credentials(credentials, cluster)
        if broker is None:
            return None, ours
        return BrokerAddress.parse(broker, **broker_access(broker, ours, **access)), ours
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


_ACCESS = {name.removeprefix("--").replace("-", "_") for name in BROKER_OPTIONS}


def access_options(command: Command, broker: str | None) -> Command:
    """Add the options of a broker and its credentials; `broker` is the default URL."""
    settings = {"--credentials": CREDENTIALS_OPTION, **dict(reversed(BROKER_OPTIONS.items()))}
    for name, setting in settings.items():
        variable = environment_variable(name)
        command = click.option(name, envvar=variable, show_envvar=True, **setting)(command)
    for option in (
        click.option(
            "--cluster",
            envvar="EDGECOSINE_CLUSTER",
            default=DEFAULT_CLUSTER,
            show_default=True,
            show_envvar=True,
            help="Name of the cluster.",
        ),
        click.option(
            "--broker",
            envvar="EDGECOSINE_BROKER",
            default=broker,
            show_default=True,
            show_envvar=True,
            metavar="URL",
            callback=no_password,
            help="MQTT broker: mqtt://[user@]host[:port], or mqtts:// for TLS.",
        ),
    ):
        command = option(command)
    return command


def host_name() -> str:
    """The host name as a node id: its ASCII letters and digits, or `host-` and a digest."""
    name = socket.gethostname().split(".")[0]
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    known = re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-")[:32]
    digest = hashlib.blake2b(name.encode(errors="replace"), digest_size=3).hexdigest()
    return known or f"host-{digest}"


def run_command(main: Coroutine[Any, Any, None], drain: Callable[[], bool] | None = None) -> None:
    """Run a command's coroutine. SIGINT and SIGTERM cancel it.

    With `drain`, SIGTERM calls it instead; it returns whether the coroutine will end by itself.

    Exits with a code of `edgecosine.cli.exit_status`.
    """
    try:
        is_terminated = uvloop.run(_until_terminated(main, drain))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (Exception, asyncio.CancelledError, SystemExit) as error:
        raise end_of(error) from error
    if is_terminated:
        sys.exit(TERMINATED)


async def _until_terminated(
    main: Coroutine[Any, Any, None], drain: Callable[[], bool] | None
) -> bool:
    """Run the coroutine; returns whether SIGTERM ended it."""
    is_terminated = False
    running = asyncio.current_task()
    assert running is not None

    def terminate() -> None:
        nonlocal is_terminated
        is_terminated = True
        if drain is not None and drain():
            return
        running.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    try:
        await main
    except asyncio.CancelledError:
        # Any other cancellation is Ctrl-C, which the runner handles, or a bug.
        if not is_terminated:
            raise
    return is_terminated
