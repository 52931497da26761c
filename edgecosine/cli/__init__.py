"""The command line. Each command has its own file, which is imported when the command is called."""

from __future__ import annotations

import importlib
from typing import Any, NoReturn

import click

from edgecosine import __version__
from edgecosine.cli.exit_status import run_to_end

_GROUPS = {
    "Commands": {
        "up": "Run a whole cluster on this machine.",
        "ask": "Send a prompt and print the answer as it is generated.",
        "status": "Show the nodes of the cluster.",
        "node": "Run one node: a target, a drafter, a committee member or an HTTP gateway.",
        "doctor": "Check this machine and report what to fix.",
        "broker": "Run an MQTT broker.",
        "cluster": "Manage the members of a cluster: init, invite, join, revoke.",
        "key": "Create, list and revoke keys of HTTP clients.",
        "model": "List, fetch and show models.",
        "forget": "Clear the broker's retained messages of a node that no longer exists.",
    },
    "Measurements and experiments": {
        "demo": "Show the speedup from speculation on this machine.",
        "bench": "Run benchmarks.",
        "lab": "Run a cluster on an emulated network.",
    },
}
_COMMANDS = [name for commands in _GROUPS.values() for name in commands]


class _Lazy(click.Group):
    """Imports a command when it is called, so that `--help` and `ask` start at once."""

    def main(self, args: Any = None, *rest: Any, **settings: Any) -> NoReturn:
        """Run the command line and exit."""
        settings["standalone_mode"] = False
        run_to_end(lambda words: click.Group.main(self, words, *rest, **settings), args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return _COMMANDS

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"edgecosine.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgecosine")
def main() -> None:
    """EdgeCoSine pools mixed machines on a LAN to serve one large language model faster than the
    target machine alone, with identical output."""
