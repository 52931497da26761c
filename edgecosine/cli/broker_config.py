"""`edgecosine cluster broker-config` and `http-certificate`: TLS for Mosquitto and for HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from edgecosine.node.credentials.ca_server import utc_now
from edgecosine.protocol.api.topics import Topics
from edgecosine.security.authority import Authority
from edgecosine.security.files import write_private
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
    """The cluster that `edgecosine cluster` manages, and the directory of its files."""

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
    help="Name or address of the broker's machine; may be repeated.",
)  # fmt: skip
@click.option(
    "--client", "clients", multiple=True, metavar="NAME",
    help="User name of a client, which gets a password; may be repeated.",
)  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), default=CLIENT_PORT, show_default=True,
              help="Port for clients, with passwords.")  # fmt: skip
@click.option("--node-port", type=click.IntRange(1, 65535), default=NODE_PORT, show_default=True,
              help="Port for nodes, with certificates.")  # fmt: skip
@click.pass_obj
def broker_config(
    context: ConfigTarget, directory: Path, hosts: tuple[str, ...], clients: tuple[str, ...],
    port: int, node_port: int,
) -> None:  # fmt: skip
    """Write a configuration for Mosquitto to DIRECTORY: TLS, passwords and access control.

    Run it again to add clients, after a target joined, after a revocation, and once a year.
    """
    authority, now = context.authority(), utc_now()
    key, chain = authority.issue_broker([check_host(host) for host in hosts], now)
    trust = authority.trust_list(now)
    targets = [m.node_id for m in authority.members(now) if m.role == "target" and m.is_in]
    new = write_configuration(
        directory,
        BrokerFiles(
            topics=Topics(authority.cluster), key=key, chain=chain, authorities=trust.authorities,
            revoked=trust.revoked, targets=targets, clients=clients, client_port=port,
            node_port=node_port,
        ),
    )  # fmt: skip
    click.echo(f"broker:    mosquitto -c {directory.absolute() / 'mosquitto.conf'}", err=True)
    click.echo(f"nodes:     --broker mqtts://{hosts[0]}:{node_port}", err=True)
    click.echo(f"clients:   --broker mqtts://{hosts[0]}:{port} --broker-username NAME "
               f"--broker-ca {directory.absolute() / 'authorities.pem'}", err=True)  # fmt: skip
    _warn_if_closed(directory)
    for name, password in new.items():
        click.echo(f"{name}\t{password}")


@click.command("http-certificate")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--host", "hosts", multiple=True, required=True, metavar="HOST",
    help="Name or address by which clients reach the node; may be repeated.",
)  # fmt: skip
@click.pass_obj
def http_certificate(context: ConfigTarget, file: Path, hosts: tuple[str, ...]) -> None:
    """Write a certificate and its key to FILE, for `edgecosine node --http-certificate FILE`.

    Run it again once a year. Clients trust it by the authorities that are printed.
    """
    authority, now = context.authority(), utc_now()
    key, chain = authority.issue_broker([check_host(host) for host in hosts], now)
    write_private(file, chain + key)
    click.echo(authority.trust_list(now).authorities, nl=False)


def _warn_if_closed(directory: Path) -> None:
    """Warn when Mosquitto, started by root, cannot access its directory."""
    account = broker_account()
    closed = closed_to(account, directory) if account else None
    if account and closed:
        remedy = f"chown {account.pw_name} {closed}"
        if closed != directory:
            remedy = f"chmod o+x {closed}, or choose another directory"
        click.echo(
            f"but first: Mosquitto runs as {account.pw_name}, which cannot access {closed}: "
            f"{remedy}",
            err=True,
        )
