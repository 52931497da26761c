"""`edgecosine broker`: the embedded MQTT broker, for those who have none."""

from __future__ import annotations

import click

from edgecosine.cli.running import run_command
from edgecosine.node.broker import BrokerKind, EmbeddedBroker


@click.command("broker")
@click.option(
    "--listen",
    envvar="EDGECOSINE_BROKER_LISTEN",
    default="127.0.0.1:1883",
    show_default=True,
    show_envvar=True,
    metavar="HOST:PORT",
    help="Where to listen; 0.0.0.0:1883 lets the whole network in, without a password.",
)
@click.option(
    "--kind",
    type=click.Choice(["auto", "mosquitto", "amqtt"]),
    default="auto",
    show_default=True,
    help="Mosquitto when it is installed, else the pip-installed amqtt.",
)
def command(listen: str, kind: str) -> None:
    """Run an MQTT broker until interrupted. It keeps nothing on disk."""
    host, port = _address(listen)
    kinds: dict[str, BrokerKind] = {"mosquitto": "mosquitto", "amqtt": "amqtt"}
    run_command(_serve(host, port, kinds.get(kind)))


async def _serve(host: str, port: int, kind: BrokerKind | None) -> None:
    async with EmbeddedBroker(host=host, port=port, kind=kind) as broker:
        click.echo(f"{broker.kind} is running at {broker.url}")
        await broker.wait()


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) <= 65535:
        raise click.BadParameter(f"{listen!r} is not HOST:PORT", param_hint="--listen")
    return host.strip("[]") or "127.0.0.1", int(port)
