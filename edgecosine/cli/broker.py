"""`edgecosine broker`: the embedded MQTT broker."""

from __future__ import annotations

import logging

import click

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.running import run_command
from edgecosine.local.embedded_broker import BrokerKind, EmbeddedBroker
from edgecosine.node.links.link_policy import is_loopback

logger = logging.getLogger(__name__)


@click.command("broker")
@click.option(
    "--listen",
    envvar="EDGECOSINE_BROKER_LISTEN",
    default="127.0.0.1:1883",
    show_default=True,
    show_envvar=True,
    metavar="HOST:PORT",
    help="Address to listen on; other than loopback only with --insecure.",
)
@click.option(
    "--insecure", is_flag=True,
    help="Allow an address that other machines reach, without passwords and encryption.",
)  # fmt: skip
@click.option(
    "--kind",
    type=click.Choice(["auto", "mosquitto", "amqtt"]),
    default="auto",
    show_default=True,
    help="auto: Mosquitto if it is installed, else amqtt (from pip).",
)
def command(listen: str, insecure: bool, kind: str) -> None:
    """Run an MQTT broker until interrupted. It stores nothing on disk and authenticates no client.

    For use over a network, `edgecosine cluster broker-config` configures Mosquitto.
    """
    host, port = _address(listen)
    if not insecure and not is_loopback(host):
        raise click.BadParameter(
            "any machine on the network could read prompts and answers: configure Mosquitto with "
            "`edgecosine cluster broker-config` or, on a trusted network, use --insecure",
            param_hint="--listen",
        )  # fmt: skip
    if insecure:
        log_to_stderr("warning")
        logger.warning(
            "INSECURE, any machine on the network can read prompts and answers: broker=%s", listen
        )
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
