"""Texts name only options that the command has which prints them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from edgecosine.cli import main

ROOT = Path(__file__).parents[2] / "edgecosine"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
NAMED = re.compile(r"edgecosine ([a-z][a-z -]*)")
"""A command in a text, whose options the text may name."""
COMMANDS_OF = {
    "cli/broker_config.py": ("ask",),  # what nodes and clients are to be given
    "cli/lab.py": ("ask", "lab up"),
    "cli/node_options.py": ("node",),
    "cli/state.py": ("node",),
    "local/doctor.py": ("doctor", "node"),
    "security/authority.py": ("cluster rotate",),
    "security/rolls.py": ("cluster init", "node"),
}
"""Commands that print the texts of a file; of other files in `cli/` its own, else `node`."""
NOT_READ = {"models/fetching.py", "engine/cpu/kernel_library.py", "cli/access.py"}
"""Two have options of other programs; the last asks the command, which is tested below."""


def commands(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for each in command.list_commands(context):
            child = command.get_command(context, each)
            assert child is not None
            yield from commands(child, f"{name} {each}".strip())


COMMANDS = dict(commands(main))


def options(name: str) -> set[str]:
    """The options of a command and of the groups that it is in."""
    words = name.split()
    parts = (" ".join(words[:i]) for i in range(len(words) + 1))
    return {"--help"} | {
        one
        for part in parts
        for param in COMMANDS[part].params
        for one in (*param.opts, *param.secondary_opts)
    }


def commands_of(file: str) -> tuple[str, ...]:
    if file in COMMANDS_OF:
        return COMMANDS_OF[file]
    if not file.startswith("cli/"):
        return ("node",)
    module = "edgecosine." + file.removesuffix(".py").replace("/", ".")
    return tuple(
        name for name, one in COMMANDS.items() if getattr(one.callback, "__module__", "") == module
    )


def texts(tree: ast.Module) -> Iterator[str]:
    """All strings but docstrings; of a formatted one, its fixed parts."""
    parts: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            parts.add(node.value)
        elif isinstance(node, ast.JoinedStr) and node not in parts:
            parts.update(node.values)
            fixed = (getattr(part, "value", None) for part in node.values)
            yield "".join(part if isinstance(part, str) else "{}" for part in fixed)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            yield node.value


def named_commands(text: str) -> Iterator[str]:
    for words in NAMED.findall(text):
        found = words.split()
        yield from (
            name for i in range(1, len(found) + 1) if (name := " ".join(found[:i])) in COMMANDS
        )


def faults(path: Path) -> Iterator[str]:
    """Texts of a file with options that its commands lack."""
    file = str(path.relative_to(ROOT))
    if file in NOT_READ:
        return
    own = {option for name in commands_of(file) for option in options(name)}
    for text in texts(ast.parse(path.read_text())):
        known = own.union(*map(options, named_commands(text)))
        # Another beginning is that of an option itself, or of the words of a command line.
        if not text.startswith("--") and not set(OPTION.findall(text)) <= known:
            yield f"{file}: {text}"


def test_options_in_texts_exist() -> None:
    files = [path for path in ROOT.rglob("*.py") if "lab" not in path.parts]
    assert not [fault for path in files for fault in faults(path)]


@pytest.mark.parametrize("command", [name for name in COMMANDS if "--broker" in options(name)])
def test_refusal_of_a_password_names_an_option_of_the_command(command: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        COMMANDS[command].make_context(command, ["--broker", "mqtt://me:secret@127.0.0.1"])
    assert set(OPTION.findall(str(caught.value))) <= options(command)
