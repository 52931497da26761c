"""What the commands that talk to a broker share: two options, and how a command ends."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click
import uvloop

from edgecosine.errors import EdgecosineError

DEFAULT_BROKER = "mqtt://127.0.0.1:1883"
DEFAULT_CLUSTER = "home"
INTERRUPTED = 130
TERMINATED = 143

Command = TypeVar("Command", bound=Callable[..., Any])


def broker_options(command: Command) -> Command:
    """Add `--broker` and `--cluster` to a command."""
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
            default=DEFAULT_BROKER,
            show_default=True,
            show_envvar=True,
            metavar="URL",
            help="MQTT broker: mqtt://[user:password@]host[:port].",
        ),
    ):
        command = option(command)
    return command


def run_command(story: Coroutine[Any, Any, None]) -> None:
    """Run a command's coroutine. Signals cancel it, so that it leaves as it should.

    Exits with 130 after Ctrl-C, with 143 after SIGTERM, and with 1 and a plain reason after an
    error of ours.
    """
    try:
        is_terminated = uvloop.run(_until_terminated(story))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except EdgecosineError as error:
        raise click.ClickException(str(error)) from error
    if is_terminated:
        sys.exit(TERMINATED)


async def _until_terminated(story: Coroutine[Any, Any, None]) -> bool:
    """Whether SIGTERM ended the story."""
    is_terminated = False

    def terminate() -> None:
        nonlocal is_terminated
        is_terminated = True
        telling.cancel()

    async with asyncio.TaskGroup() as group:
        telling = group.create_task(_failure_of(story), name="command")
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    if not telling.cancelled():
        failure = telling.result()
        if failure is not None:
            raise failure
    return is_terminated


async def _failure_of(story: Coroutine[Any, Any, None]) -> EdgecosineError | None:
    """The error that ended a story, as a value: a task group would wrap it."""
    try:
        await story
    except EdgecosineError as error:
        return error
    return None
