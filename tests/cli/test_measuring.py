"""Options that measuring commands share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edgecosine.cli import main


def _commands(group: click.Group, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield (*names, name), command
            if isinstance(command, click.Group):
                yield from _commands(command, *names, name)


REPORTING = [
    names
    for names, command in _commands(main)
    if any(option.name == "report" for option in command.params)
]


def test_reports_are_written_by_the_demo_and_by_benchmarks() -> None:
    assert ("demo",) in REPORTING
    assert len(REPORTING) > 15


@pytest.mark.parametrize("names", REPORTING, ids=" ".join)
def test_report_that_cannot_be_written_is_refused_before_anything_is_measured(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    costs = tmp_path / "costs.json"
    costs.write_text("{}")
    with_costs = ["--costs", str(costs)] if names[-1] in {"map", "map-lab", "routing"} else []
    done = CliRunner().invoke(main, [*names, *with_costs, "--json", str(missing / "a.json")])
    assert done.exit_code == 2, done.output
    assert f"Invalid value for '--json': {missing} is not a directory" in done.output


GROUPS = [names for names, command in _commands(main) if isinstance(command, click.Group)]


@pytest.mark.parametrize("names", GROUPS, ids=" ".join)
def test_help_of_a_group_has_whole_sentences(names: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(main, [*names, "--help"]).output
    assert "Commands:" in shown
    assert "..." not in shown.partition("Commands:")[2]
