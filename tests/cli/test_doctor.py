"""The output and exit code of `edgecosine doctor`."""

from __future__ import annotations

import json

from click.testing import CliRunner

from edgecosine.cli.doctor import command


def test_fault_is_printed_with_advice_and_exits_with_1() -> None:
    result = CliRunner().invoke(command, ["--model", "no such model"])
    assert result.exit_code == 1
    assert "do  model no such model" in result.output
    assert "→ use a name of `edgecosine model list`" in result.output


def test_json_has_the_same_checks() -> None:
    result = CliRunner().invoke(command, ["--model", "no such model", "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert found["ok"] is False
    faults = [check["name"] for check in found["checks"] if not check["ok"]]
    assert "model no such model" in faults
    assert all(check["finding"] for check in found["checks"])
