"""`edgecosine doctor`: checks this machine, and prints a line for each check, with advice."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import uvloop

import edgecosine
from edgecosine.cli.running import access_options, resolve_access
from edgecosine.local.doctor import Check, examine
from edgecosine.local.kernels import build_kernels

_ZOO = Path(edgecosine.__file__).parent / "zoo"


@click.command("doctor")
@click.option(
    "--model",
    envvar="EDGECOSINE_MODEL",
    show_envvar=True,
    help="Model to check: a name of `edgecosine model list`, a directory, a GGUF file or a hub "
    "id.  [default: the whole zoo]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@functools.partial(access_options, broker=None)
def command(
    model: str | None, as_json: bool, broker: str | None, cluster: str, credentials: str | None,
    **options: Any,
) -> None:  # fmt: skip
    """Check this machine and report what to fix. Exits with 1 if there is anything to fix.

    Without --broker the command checks whether a broker could be started.
    """
    address, ours = resolve_access(broker, cluster, credentials, options)
    build_kernels(functools.partial(click.echo, err=True))
    checks = uvloop.run(examine(model=model, broker=address, zoo=_ZOO, credentials=ours))
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
