"""`edgecosine forget`: clears the broker's retained messages of a node that no longer exists."""

from __future__ import annotations

import click

from edgecosine.cli.running import broker_options, run_command
from edgecosine.client.forget import forget
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.protocol.api.topics import is_identifier


@click.command("forget")
@click.argument("node")
@broker_options
def command(node: str, broker: BrokerAddress, cluster: str) -> None:
    """Remove NODE, which no longer exists, from the broker; otherwise it is shown as lost for an
    hour.

    A running node is not removed; a node of unclear state is observed for ten seconds.
    """
    if not is_identifier(node):
        raise click.BadParameter("1 to 64 letters, digits, '_', '.' or '-'", param_hint="NODE")

    async def main() -> None:
        await forget(broker, cluster, node)
        click.echo(f"{node} is forgotten")

    run_command(main())
