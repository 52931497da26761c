"""`edgecosine cluster`: who belongs to the cluster. The authority's commands run on its machine."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from edgecosine.cli.access import CREDENTIALS_OPTION, NO_CREDENTIALS
from edgecosine.cli.broker_config import ConfigTarget, broker_config
from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.outcome import input_text, standard_input
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


@click.group("cluster")
@click.option(
    "--cluster", envvar="EDGECOSINE_CLUSTER", default=DEFAULT_CLUSTER, show_default=True,
    show_envvar=True, help="Name of the cluster.",
)  # fmt: skip
@click.option(
    "--credentials", envvar="EDGECOSINE_CREDENTIALS", show_envvar=True, **CREDENTIALS_OPTION
)
@click.pass_context
def command(ctx: click.Context, cluster: str, credentials: str | None) -> None:
    """Who belongs to the cluster.

    Once, on the target's machine: `init`. For each other machine: `invite` there, and `join` with
    the token that it prints on the new one. From then on nodes link encrypted, and only with nodes
    of the cluster.
    """
    Topics(cluster)  # a name that is none is refused before anything is made
    if credentials == NO_CREDENTIALS:
        raise ConfigError("credentials", credentials, "the directory that this command works on")
    ctx.obj = ConfigTarget(cluster, _place(credentials, cluster))


def _node_id(what: str) -> Callable[[Command], Command]:
    return click.option("--node-id", metavar="ID", envvar="EDGECOSINE_NODE_ID", help=what)


def _role(default: Role) -> Callable[[Command], Command]:
    return click.option(
        "--role", type=click.Choice(["target", "drafter"]), default=default, show_default=True,
        help="What the node is to be.",
    )  # fmt: skip


@command.command("init")
@_role("target")
@_node_id("Name of this machine's node.  [default: the host's]")
@click.option(
    "--listen", default=f":{ENROLMENT_PORT}", show_default=True, metavar="HOST:PORT",
    help="Where new nodes come to be let in.",
)  # fmt: skip
@click.pass_obj
def init(place: ConfigTarget, role: Role, node_id: str | None, listen: str) -> None:
    """Make a cluster: its authority lives here, and this machine's node is its first member."""
    identity = NodeIdentity(place.cluster, role, node_id or host_name())
    host, port = _listen_address(listen)
    if Credentials.are_in(place.directory):
        allowed = "a place without credentials; there are some, and they were left as they are"
        raise ConfigError("credentials", str(place.directory), allowed)
    Credentials.check_place(place.directory)
    authority = Authority.make(place.directory, place.cluster, listen, utc_now())
    enrolling = Enrolling()
    admission = authority.admit_here(identity, enrolling.request, utc_now())
    own = str(Address(host if host not in ("", "0.0.0.0", "::") else "127.0.0.1", port))  # noqa: S104
    enrolling.store(place.directory, admission, [own])
    click.echo(f"cluster {place.cluster}: {identity.node_id} is its {role}")
    click.echo(f"authority and credentials: {place.directory} (keep them; back them up in secret)")
    click.echo("next: start `edgecosine node` here, then `edgecosine cluster invite`")


@command.command("invite")
@_role("drafter")
@click.option("--ttl", default="15m", show_default=True, help="How long the token works: 90s, 2h.")
@_node_id("Invite a node of this name only.")
@click.option(
    "--address", "addresses", multiple=True, metavar="HOST:PORT",
    help="Where the new machine finds this one; may be repeated.  [default: this machine's]",
)  # fmt: skip
@click.pass_obj
def invite(
    place: ConfigTarget, role: Role, ttl: str, node_id: str | None, addresses: tuple[str, ...]
) -> None:
    """Print a token with which one node may join, once."""
    authority = place.authority()
    told = [str(parse_address(address, key="address")) for address in addresses]
    secret = authority.invite(role, _duration(ttl), utc_now(), node_id or "")
    token = JoinToken(
        authority.cluster, authority.fingerprint, secret, told or _own_addresses(authority)
    )
    click.echo(write_token(token))
    click.echo(
        f"on the new machine, within {ttl}:  edgecosine cluster join TOKEN   "
        "(the token is a secret; - reads it from standard input)",
        err=True,
    )


@command.command("join")
@click.argument("token", envvar="EDGECOSINE_TOKEN")
@_node_id("Name of this machine's node.  [default: the host's]")
@click.option(
    "--ca-address", "addresses", multiple=True, metavar="HOST:PORT",
    help="Where the authority is, instead of where the token says; may be repeated.",
)  # fmt: skip
@click.pass_context
def join_command(
    ctx: click.Context, token: str, node_id: str | None, addresses: tuple[str, ...]
) -> None:
    """Make this machine's node a member. TOKEN is what `invite` printed; - reads it."""
    if token == "-":  # noqa: S105 -- a dash
        token = input_text(standard_input().readline(MAX_TOKEN_CHARACTERS))
    told = read_token(token)
    given = ctx.parent.params["credentials"] if ctx.parent else None
    directory = _place(given, told.cluster)
    if Credentials.are_in(directory):
        raise ConfigError(
            "credentials", str(directory), "a place without credentials: this machine's node joined"
            " already; a second one needs a --credentials DIR of its own",
        )  # fmt: skip
    Credentials.check_place(directory)
    name = NodeIdentity(told.cluster, "drafter", node_id or host_name()).node_id
    where = [str(parse_address(a, key="ca_address")) for a in addresses] or told.addresses

    async def story() -> None:
        ours = (await join(told, name, directory, where)).identity
        click.echo(f"{ours.node_id} is a {ours.role} of cluster {ours.cluster}: {directory}")
        click.echo(f"next: edgecosine node --role {ours.role} --cluster {ours.cluster} --model …")

    run_command(story())


@command.command("renew")
@click.pass_obj
def renew_command(place: ConfigTarget) -> None:
    """Renew this node's certificate now; a running node does so by itself."""
    credentials = Credentials.load(place.directory)

    async def story() -> None:
        renewed = await renew(credentials)
        click.echo(f"{renewed.identity.node_id}: until {renewed.not_after:%Y-%m-%d %H:%M} UTC")

    run_command(story())


@command.command("revoke")
@click.argument("node")
@click.pass_obj
def revoke(place: ConfigTarget, node: str) -> None:
    """Put a node out. Running nodes part with it within a second; others are not touched."""
    place.authority().revoke(node, utc_now())
    click.echo(f"{node} is revoked; brokers learn it when `cluster broker-config` is run again")
    click.echo(f"then `edgecosine forget {node}` clears what brokers hold of it")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print data.")
@click.pass_obj
def list_command(place: ConfigTarget, as_json: bool) -> None:
    """Show every node that was let in."""
    members = place.authority().members(utc_now())
    if as_json:
        click.echo(json.dumps([_data(member) for member in members], indent=2))
        return
    table = Table("node", "role", "is", "until", "by")
    for member in members:
        until = f"{member.not_after:%Y-%m-%d %H:%M}"
        table.add_row(member.node_id, member.role, _standing(member), until, member.issuer)
    Console(width=None if sys.stdout.isatty() else 240).print(table)


@command.command("rotate")
@click.option("--finish", is_flag=True, help="Trust the old key no more.")
@click.option("--force", is_flag=True, help="Put out the nodes that did not renew, too.")
@click.pass_obj
def rotate(place: ConfigTarget, finish: bool, force: bool) -> None:
    """Replace the authority's key while the cluster works.

    Nodes that run renew by themselves; when `list` shows all of them by the new key, --finish.
    """
    authority = place.authority()
    if finish:
        authority.finish_rotation(utc_now(), is_forced=force)
        click.echo("the old key is trusted no more")
    else:
        click.echo(f"{authority.rotate(utc_now())} signs now; nodes that run renew by themselves")


@command.command("serve")
@click.pass_obj
def serve(place: ConfigTarget) -> None:
    """Serve the authority without a node; `edgecosine node` on this machine does it, too."""
    log_to_stderr("info")
    authority = place.authority()

    async def story() -> None:
        endpoint = CaServer(authority)
        await endpoint.open()
        click.echo(f"enrolment: {', '.join(map(str, endpoint.addresses))}")
        await endpoint.run()

    run_command(story())


command.add_command(broker_config)


def _place(credentials: str | None, cluster: str) -> Path:
    """Where credentials are, or are to be.

    Raises ConfigError when there is no such place.
    """
    directory = Path(credentials) if credentials else default_credentials(cluster)
    if directory is None:
        allowed = "--credentials DIR, for this user has no home directory"
        raise ConfigError("credentials", "", allowed)
    return directory


def _standing(member: ClusterMember) -> str:
    return "revoked" if member.is_revoked else "expired" if member.is_expired else "in"


def _data(member: ClusterMember) -> dict[str, Any]:
    return {
        "node": member.node_id,
        "role": member.role,
        "is": _standing(member),
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
    told = addresses_to_announce([host], interfaces())
    return [str(Address(address, port)) for address in told][:_MAX_ADDRESSES]


def _duration(text: str) -> timedelta:
    found = _TTL.fullmatch(text)
    if found is None:
        raise ConfigError("ttl", text, "a number and a unit, as in 90s, 15m, 2h, 1d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
