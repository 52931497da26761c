"""The command line. Each command lives in a file of its own and is imported when it is called."""

from __future__ import annotations

import importlib
from typing import Any, NoReturn

import click

from edgecosine import __version__
from edgecosine.cli.outcome import run_to_end

_COMMANDS = {
    "node": "Run one node: a target or a drafter.",
    "up": "Run a whole cluster on this machine.",
    "cluster": "Say who belongs to the cluster: init, invite, join, revoke.",
    "model": "List, fetch and show models.",
    "ask": "Ask the cluster and print the answer as it comes.",
    "status": "Show the nodes of the cluster.",
    "forget": "Clear what the broker holds of a node that is gone.",
    "doctor": "Check this machine and say what to do.",
    "broker": "Run an MQTT broker.",
    "demo": "Show what speculation gains on this machine.",
    "bench": "Measure.",
    "lab": "Run a cluster on a network with weather.",
}


class _Lazy(click.Group):
    """Imports a command when it is called, so that `--help` and `ask` start at once."""

    def main(self, args: Any = None, *rest: Any, **settings: Any) -> NoReturn:
        """Run the command line and exit."""
        settings["standalone_mode"] = False
        run_to_end(lambda given: click.Group.main(self, given, *rest, **settings), args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"edgecosine.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgecosine")
def main() -> None:
    """EdgeCoSine: unequal machines serve one large language model together, faster than its own
    GPU could alone, and say exactly the same words."""
