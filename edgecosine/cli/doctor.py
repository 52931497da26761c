"""`edgecosine doctor`: is this machine ready? One line a check, with what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
import uvloop

import edgecosine
from edgecosine.node.doctor import Check, examine

_ZOO = Path(edgecosine.__file__).parent / "zoo"


@click.command("doctor")
@click.option(
    "--model",
    envvar="EDGECOSINE_MODEL",
    show_envvar=True,
    help="Model to look for: a zoo name, a directory or a hub id.  [default: the whole zoo]",
)
@click.option(
    "--broker",
    envvar="EDGECOSINE_BROKER",
    show_envvar=True,
    metavar="URL",
    help="MQTT broker to reach.  [default: see whether one could be started]",
)
@click.option("--json", "as_json", is_flag=True, help="Print data.")
def command(model: str | None, broker: str | None, as_json: bool) -> None:
    """Check this machine and say what to do. Exits with 1 if anything needs doing."""
    checks = uvloop.run(examine(model=model, broker=broker, zoo=_ZOO))
    is_ready = all(check.is_ok for check in checks)
    if as_json:
        found = [{"ok": check.is_ok, **asdict(check)} for check in checks]
        click.echo(json.dumps({"ok": is_ready, "checks": found}, indent=2))
    else:
        _print(checks)
    sys.exit(0 if is_ready else 1)


def _print(checks: Sequence[Check]) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = click.style("ok", fg="green") if check.is_ok else click.style("do", fg="yellow")
        click.echo(f"{mark}  {check.name:<{width}}  {check.finding}")
        if check.advice:
            click.echo(f"    {'':<{width}}  → {check.advice}")
