"""`edgecosine cluster`: membership commands. Those of the authority run on its machine."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from rich.console import Console
from rich.table import Table

from edgecosine.cli.access import CREDENTIALS_OPTION, NO_CREDENTIALS
from edgecosine.cli.broker_config import ConfigTarget, broker_config, http_certificate
from edgecosine.cli.exit_status import input_text, standard_input
from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.options import CommandGroup
from edgecosine.cli.running import host_name, run_command
from edgecosine.config import DEFAULT_CLUSTER
from edgecosine.discovery.interfaces import addresses_to_announce, interfaces
from edgecosine.discovery.peer import Address
from edgecosine.discovery.static import parse_address
from edgecosine.errors import ConfigError
from edgecosine.node.credentials.ca_client import join, renew
from edgecosine.node.credentials.ca_server import CaServer, utc_now
from edgecosine.protocol.api.topics import Topics
from edgecosine.protocol.wire.messages import Role
from edgecosine.security.authority import Authority
from edgecosine.security.credentials import Credentials, Enrolling
from edgecosine.security.files import default_credentials
from edgecosine.security.identity import NodeIdentity
from edgecosine.security.join_token import MAX_TOKEN_CHARACTERS, JoinToken, read_token, write_token
from edgecosine.security.rolls import ClusterMember

ENROLMENT_PORT = 7412
_MAX_ADDRESSES = 4
_TTL = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group("cluster", cls=CommandGroup)
@click.option(
    "--cluster", envvar="EDGECOSINE_CLUSTER", default=DEFAULT_CLUSTER, show_default=True,
    show_envvar=True, help="Name of the cluster.",
)  # fmt: skip
@click.option(
    "--credentials", envvar="EDGECOSINE_CREDENTIALS", show_envvar=True, **CREDENTIALS_OPTION
)
@click.pass_context
def command(ctx: click.Context, cluster: str, credentials: str | None) -> None:
    """Manage the members of the cluster.

    Run `init` once, on the target's machine. For each other machine run `invite` there, and `join`
    with the printed token on the new machine. From then on links are encrypted, and nodes link only
    with members of the cluster.
    """
    Topics(cluster)  # refuses an invalid name before anything is written
    if credentials == NO_CREDENTIALS:
        raise ConfigError("credentials", credentials, "the directory that this command manages")
    ctx.obj = ConfigTarget(cluster, _directory(credentials, cluster))


def _node_id(help_text: str) -> Callable[[Command], Command]:
    return click.option("--node-id", metavar="ID", envvar="EDGECOSINE_NODE_ID", help=help_text)


def _role(default: Role) -> Callable[[Command], Command]:
    return click.option(
        "--role", type=click.Choice(get_args(Role)), default=default, show_default=True,
        help="Role of the node.",
    )  # fmt: skip


@command.command("init")
@_role("target")
@_node_id("Name of this machine's node.  [default: the host name]")
@click.option(
    "--listen", default=f":{ENROLMENT_PORT}", show_default=True, metavar="HOST:PORT",
    help="Address on which the authority enrols new nodes.",
)  # fmt: skip
@click.pass_obj
def init(context: ConfigTarget, role: Role, node_id: str | None, listen: str) -> None:
    """Create a cluster: its authority on this machine, and this machine's node as first member."""
    identity = NodeIdentity(context.cluster, role, node_id or host_name())
    host, port = _listen_address(listen)
    if Credentials.are_in(context.directory):
        allowed = "a directory without credentials; the existing ones were left as they are"
        raise ConfigError("credentials", str(context.directory), allowed)
    Credentials.check_place(context.directory)
    authority = Authority.make(context.directory, context.cluster, listen, utc_now())
    enrolling = Enrolling()
    admission = authority.admit_here(identity, enrolling.request, utc_now())
    own = str(Address(host if host not in ("", "0.0.0.0", "::") else "127.0.0.1", port))  # noqa: S104
    enrolling.store(context.directory, admission, [own])
    click.echo(f"cluster {context.cluster}: {identity.node_id} is its {role}")
    click.echo(f"authority and credentials: {context.directory} (secret; make a backup)")
    click.echo("next: start `edgecosine node` here, then `edgecosine cluster invite`")


@command.command("invite")
@_role("drafter")
@click.option("--ttl", default="15m", show_default=True,
              help="How long the token is valid: 90s, 2h.")  # fmt: skip
@_node_id("Admit only a node of this name.")
@click.option(
    "--address", "addresses", multiple=True, metavar="HOST:PORT",
    help="Address of the authority for the new machine; may be repeated.  [default: this "
    "machine's addresses]",
)  # fmt: skip
@click.pass_obj
def invite(
    context: ConfigTarget, role: Role, ttl: str, node_id: str | None, addresses: tuple[str, ...]
) -> None:
    """Print a token with which one node can join once."""
    authority = context.authority()
    given = [str(parse_address(address, key="address")) for address in addresses]
    secret = authority.invite(role, _duration(ttl), utc_now(), node_id or "")
    token = JoinToken(
        authority.cluster, authority.fingerprint, secret, given or _own_addresses(authority)
    )
    click.echo(write_token(token))
    click.echo(
        f"on the new machine, within {ttl}:  edgecosine cluster join TOKEN   "
        "(the token is a secret; - reads it from standard input)",
        err=True,
    )


@command.command("join")
@click.argument("token", envvar="EDGECOSINE_TOKEN")
@_node_id("Name of this machine's node.  [default: the host name]")
@click.option(
    "--ca-address", "addresses", multiple=True, metavar="HOST:PORT",
    help="Address of the authority, instead of those in the token; may be repeated.",
)  # fmt: skip
@click.pass_context
def join_command(
    ctx: click.Context, token: str, node_id: str | None, addresses: tuple[str, ...]
) -> None:
    """Make this machine's node a member. TOKEN is printed by `invite`; - reads it from standard
    input."""
    if token == "-":  # noqa: S105 -- a dash
        token = input_text(standard_input().readline(MAX_TOKEN_CHARACTERS))
    invitation = read_token(token)
    given = ctx.parent.params["credentials"] if ctx.parent else None
    directory = _directory(given, invitation.cluster)
    if Credentials.are_in(directory):
        raise ConfigError(
            "credentials", str(directory), "a directory without credentials: this machine's node "
            "joined already; a second node needs its own --credentials DIR",
        )  # fmt: skip
    Credentials.check_place(directory)
    name = NodeIdentity(invitation.cluster, "drafter", node_id or host_name()).node_id
    where = [str(parse_address(a, key="ca_address")) for a in addresses] or invitation.addresses

    async def main() -> None:
        ours = (await join(invitation, name, directory, where)).identity
        click.echo(f"{ours.node_id} is a {ours.role} of cluster {ours.cluster}: {directory}")
        click.echo(f"next: edgecosine node --role {ours.role} --cluster {ours.cluster} --model …")

    run_command(main())


@command.command("renew")
@click.pass_obj
def renew_command(context: ConfigTarget) -> None:
    """Renew this node's certificate now; running nodes renew theirs automatically."""
    credentials = Credentials.load(context.directory)

    async def main() -> None:
        renewed = await renew(credentials)
        until = f"{renewed.not_after:%Y-%m-%d %H:%M} UTC"
        click.echo(f"{renewed.identity.node_id}: valid until {until}")

    run_command(main())


@command.command("revoke")
@click.argument("node")
@click.pass_obj
def revoke(context: ConfigTarget, node: str) -> None:
    """Revoke the membership of NODE. Running nodes close their links with it within a second."""
    context.authority().revoke(node, utc_now())
    click.echo(f"{node} is revoked; run `cluster broker-config` again to exclude it from brokers")
    click.echo(f"then `edgecosine forget {node}` clears its retained messages")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_command(context: ConfigTarget, as_json: bool) -> None:
    """Show all nodes that have joined."""
    members = context.authority().members(utc_now())
    if as_json:
        click.echo(json.dumps([_data(member) for member in members], indent=2))
        return
    table = Table("node", "role", "status", "valid until", "issuer")
    for member in members:
        until = f"{member.not_after:%Y-%m-%d %H:%M}"
        table.add_row(member.node_id, member.role, _status(member), until, member.issuer)
    Console(width=None if sys.stdout.isatty() else 240).print(table)


@command.command("rotate")
@click.option("--finish", is_flag=True, help="Stop trusting the old key.")
@click.option("--force", is_flag=True, help="With --finish: exclude nodes that have not renewed.")
@click.pass_obj
def rotate(context: ConfigTarget, finish: bool, force: bool) -> None:
    """Replace the authority's key while the cluster runs.

    Running nodes renew their certificates automatically. Use --finish when `list` shows the new key
    for all of them.
    """
    authority = context.authority()
    if finish:
        authority.finish_rotation(utc_now(), is_forced=force)
        click.echo("the old key is no longer trusted")
    else:
        key = authority.rotate(utc_now())
        click.echo(f"{key} signs from now on; running nodes renew automatically")


@command.command("serve")
@click.pass_obj
def serve(context: ConfigTarget) -> None:
    """Serve the authority without a node; `edgecosine node` on this machine also serves it."""
    log_to_stderr("info")
    authority = context.authority()

    async def main() -> None:
        endpoint = CaServer(authority)
        await endpoint.open()
        click.echo(f"enrolment: {', '.join(map(str, endpoint.addresses))}")
        await endpoint.run()

    run_command(main())


command.add_command(broker_config)
command.add_command(http_certificate)


def _directory(credentials: str | None, cluster: str) -> Path:
    """Directory of the credentials, which may not exist yet.

    Raises ConfigError when none is given and there is no default.
    """
    directory = Path(credentials) if credentials else default_credentials(cluster)
    if directory is None:
        allowed = "--credentials DIR, since this user has no home directory"
        raise ConfigError("credentials", "", allowed)
    return directory


def _status(member: ClusterMember) -> str:
    return "revoked" if member.is_revoked else "expired" if member.is_expired else "in"


def _data(member: ClusterMember) -> dict[str, Any]:
    return {
        "node": member.node_id,
        "role": member.role,
        "is": _status(member),
        "until": member.not_after.isoformat(),
        "by": member.issuer,
    }


def _listen_address(listen: str) -> Address:
    host, separator, port = listen.rpartition(":")
    if not separator or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise ConfigError("listen", listen, "HOST:PORT, or :PORT for all interfaces")
    return Address(host.strip("[]"), int(port))


def _own_addresses(authority: Authority) -> list[str]:
    host, port = _listen_address(authority.listen)
    announced = addresses_to_announce([host], interfaces())
    return [str(Address(address, port)) for address in announced][:_MAX_ADDRESSES]


def _duration(text: str) -> timedelta:
    found = _TTL.fullmatch(text)
    if found is None:
        raise ConfigError("ttl", text, "a number and a unit, as in 90s, 15m, 2h, 1d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
