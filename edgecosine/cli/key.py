"""`edgecosine key`: keys of HTTP clients."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import click

from edgecosine.cli.options import CommandGroup
from edgecosine.config import DEFAULT_CLUSTER
from edgecosine.errors import ConfigError
from edgecosine.protocol.api.topics import Topics, is_identifier
from edgecosine.security.api_keys import FILE_NAME, ApiKeys
from edgecosine.security.files import default_credentials

_MAX_NAME = 48


def default_keys(cluster: str) -> Path | None:
    """The default file of a cluster's keys; None when the user has no home directory."""
    directory = default_credentials(cluster)
    return None if directory is None else directory / FILE_NAME


@click.group("key", cls=CommandGroup)
@click.option(
    "--cluster", envvar="EDGECOSINE_CLUSTER", default=DEFAULT_CLUSTER, show_default=True,
    show_envvar=True, help="Name of the cluster.",
)  # fmt: skip
@click.option(
    "--http-keys", envvar="EDGECOSINE_HTTP_KEYS", show_envvar=True, metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of the keys, as for `edgecosine node`.  [default: one per cluster, in the user's "
    "configuration directory]",
)  # fmt: skip
@click.pass_context
def command(ctx: click.Context, cluster: str, http_keys: Path | None) -> None:
    """Manage the keys of HTTP clients.

    If there is a key, nodes on this machine refuse requests without one. Running nodes apply every
    change at once.
    """
    Topics(cluster)  # refuses an invalid name before anything is written
    path = http_keys or default_keys(cluster)
    if path is None:
        raise ConfigError(
            "http_keys", "", "--http-keys FILE, since this user has no home directory"
        )
    ctx.obj = ApiKeys(path)


@command.command("create")
@click.argument("name")
@click.pass_obj
def create(keys: ApiKeys, name: str) -> None:
    """Create a key for the client NAME and print it; it cannot be shown again.

    The target's queue treats each name as one client.
    """
    if not is_identifier(name) or len(name) > _MAX_NAME:
        allowed = f"1 to {_MAX_NAME} letters, digits, '_', '.' or '-'"
        raise ConfigError("name", name, allowed)
    click.echo(keys.create(name, datetime.now(UTC).isoformat(timespec="seconds")))


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def list_keys(keys: ApiKeys, as_json: bool) -> None:
    """List the names of all keys, and when each was created."""
    if as_json:
        click.echo(json.dumps(keys.created))
        return
    for name, created in keys.created.items():
        click.echo(f"{name}  {created}")


@command.command("revoke")
@click.argument("name")
@click.pass_obj
def revoke(keys: ApiKeys, name: str) -> None:
    """Revoke the key of the client NAME."""
    keys.revoke(name)
