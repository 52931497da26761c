"""Options made from settings, and commands whose help shows options in groups and whole sentences.

The default of an option, and the choices of a Literal, are taken from the setting that it sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from edgecosine.cli.access import environment_variable

_LONGEST = 1000
"""Characters of a sentence."""


def option(name: str, **settings: Any) -> click.Option:
    """An option with an environment variable, whose help shows both."""
    variable = environment_variable(name.partition("/")[0])
    settings = {"show_default": True, **settings}
    return click.Option([name], envvar=variable, show_envvar=True, **settings)


def setting(
    owner: type, field: str, help_text: str, name: str = "", **settings: Any
) -> click.Option:
    """An option for the field of the settings class `owner`; its name is the field's by default."""
    default = next(one.default for one in fields(owner) if one.name == field)
    if "default" not in settings:
        settings |= {"required": True} if default is MISSING else {"default": default}
    choices = sorted(_literals(get_type_hints(owner)[field]), key=lambda value: value != "auto")
    if choices:
        settings["type"] = click.Choice(choices)
    return option(name or f"--{field.replace('_', '-')}", help=help_text, **settings)


def _literals(hint: Any) -> Iterator[str]:
    """The values that a Literal, or a union of them, allows."""
    for part in get_args(hint):
        yield from [part] if get_origin(hint) is Literal else _literals(part)


class GroupedCommand(click.Command):
    """A command whose options come in groups, by title."""

    def __init__(
        self, *args: Any, groups: Mapping[str, Sequence[click.Option]], **settings: Any
    ) -> None:
        self._groups = groups
        options = [one for group in groups.values() for one in group]
        super().__init__(*args, **(settings | {"params": options}))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each group, and one for `--help`."""
        grouped = [one for group in self._groups.values() for one in group]
        others = [one for one in self.get_params(ctx) if one not in grouped]
        for title, options in [*self._groups.items(), ("Help", others)]:
            records = [one.get_help_record(ctx) for one in options]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])


class CommandGroup(click.Group):
    """A group whose help has the first sentence of each command, however long."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line for each command, in alphabetical order."""
        with formatter.section("Commands"):
            formatter.write_dl([
                (name, one.get_short_help_str(limit=_LONGEST))
                for name in self.list_commands(ctx)
                if (one := self.get_command(ctx, name)) is not None
            ])  # fmt: skip
