"""`edgecosine cluster broker-config`: a Mosquitto that lets everybody do what is theirs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from edgecosine.node.credentials.ca_server import utc_now
from edgecosine.protocol.api.topics import Topics
from edgecosine.security.authority import Authority
from edgecosine.security.mosquitto import (
    CLIENT_PORT,
    NODE_PORT,
    BrokerFiles,
    broker_account,
    check_host,
    closed_to,
    write_configuration,
)


@dataclass(frozen=True, slots=True)
class ConfigTarget:
    """Which cluster `edgecosine cluster` works on, and where its files lie."""

    cluster: str
    directory: Path

    def authority(self) -> Authority:
        """The cluster's authority.

        Raises ConfigError when it is not on this machine.
        """
        return Authority(self.directory)


@click.command("broker-config")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--host", "hosts", multiple=True, required=True, metavar="HOST",
    help="Name or address by which the broker is reached; may be repeated.",
)  # fmt: skip
@click.option(
    "--client", "clients", multiple=True, metavar="NAME",
    help="A person or a tool that may ask; may be repeated. Gets a password.",
)  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), default=CLIENT_PORT, show_default=True,
              help="For clients, with passwords.")  # fmt: skip
@click.option("--node-port", type=click.IntRange(1, 65535), default=NODE_PORT, show_default=True,
              help="For nodes, with certificates.")  # fmt: skip
@click.pass_obj
def broker_config(
    place: ConfigTarget, directory: Path, hosts: tuple[str, ...], clients: tuple[str, ...],
    port: int, node_port: int,
) -> None:  # fmt: skip
    """Write a configuration for Mosquitto to DIRECTORY: TLS, passwords, and who may do what.

    Run it again to add clients, after a new target joined, after a revocation, and once a year.
    """
    authority, now = place.authority(), utc_now()
    key, chain = authority.issue_broker([check_host(host) for host in hosts], now)
    told = authority.trust_list(now)
    targets = [m.node_id for m in authority.members(now) if m.role == "target" and m.is_in]
    new = write_configuration(
        directory,
        BrokerFiles(
            topics=Topics(authority.cluster), key=key, chain=chain, authorities=told.authorities,
            revoked=told.revoked, targets=targets, clients=clients, client_port=port,
            node_port=node_port,
        ),
    )  # fmt: skip
    click.echo(f"start it:  mosquitto -c {directory.absolute() / 'mosquitto.conf'}", err=True)
    click.echo(f"nodes:     --broker mqtts://{hosts[0]}:{node_port}", err=True)
    click.echo(f"clients:   --broker mqtts://{hosts[0]}:{port} --broker-username NAME "
               f"--broker-ca {directory.absolute() / 'authorities.pem'}", err=True)  # fmt: skip
    _warn_if_closed(directory)
    for name, password in new.items():
        click.echo(f"{name}\t{password}")


def _warn_if_closed(directory: Path) -> None:
    """Say so when Mosquitto, started by root, could not work in its directory."""
    account = broker_account()
    place = closed_to(account, directory) if account else None
    if account and place:
        remedy = f"chown {account.pw_name} {place}"
        if place != directory:
            remedy = f"chmod o+x {place}, or choose a directory elsewhere"
        click.echo(
            f"but first: Mosquitto runs as {account.pw_name}, to whom {place} is closed: {remedy}",
            err=True,
        )
