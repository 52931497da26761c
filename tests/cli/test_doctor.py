"""`edgecosine doctor`, as its user sees it."""

from __future__ import annotations

import json

from click.testing import CliRunner

from edgecosine.cli.doctor import command


def test_a_fault_is_told_with_what_to_do_and_exits_with_one() -> None:
    result = CliRunner().invoke(command, ["--model", "no such model"])
    assert result.exit_code == 1
    assert "do  model no such model" in result.output
    assert "→ give a name of `edgecosine model list`" in result.output


def test_data_says_the_same() -> None:
    result = CliRunner().invoke(command, ["--model", "no such model", "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert found["ok"] is False
    faults = [check["name"] for check in found["checks"] if not check["ok"]]
    assert "model no such model" in faults
    assert all(check["finding"] for check in found["checks"])
