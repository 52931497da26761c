"""`edgecosine status`: the nodes of the cluster and their state, from retained messages."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click
import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edgecosine.cli.running import broker_options, run_command
from edgecosine.client.client import Client
from edgecosine.client.health import committees, counted
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.protocol.api.retained_topics import NodeView

_NOTHING = "-"
_WIDE = 240
_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("role", "role", "{}"),
    ("model", "model", "{}"),
    ("quantisation", "quantization", "{}"),
    ("rtt ms", "rtt_ms", "{:.1f}"),
    ("tokens/s", "tokens_per_s", "{:.1f}"),
    ("acceptance", "acceptance", "{:.2f}"),
    ("drafted ahead", "ahead_hit_rate", "{:.0%}"),
    ("queued", "queued", "{}"),
    ("plan", "plan", "{}"),
)
"""Heading, key in the node's state, and format of each column."""


@click.command("status")
@click.option("--watch", is_flag=True, help="Keep running and show every change.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch a line per change.")
@broker_options
def command(watch: bool, as_json: bool, broker: BrokerAddress, cluster: str) -> None:
    """Show the nodes, health and counters of the cluster."""
    run_command(_show(broker, cluster, watch=watch, as_json=as_json))


async def _show(broker: BrokerAddress, cluster: str, *, watch: bool, as_json: bool) -> None:
    async with Client(broker, cluster) as client:
        if as_json:
            await _print_data(client, cluster, watch=watch)
        elif watch:
            await _watch(client, cluster)
        else:
            # In a pipe each row is one line; on a terminal rich detects the width.
            width = None if sys.stdout.isatty() else _WIDE
            Console(width=width).print(await _view(client, cluster))


async def _print_data(client: Client, cluster: str, *, watch: bool) -> None:
    while True:
        data = {
            "cluster": cluster,
            "online": await client.is_online(),
            "concerns": await client.concerns(),
            "info": await client.info(),
            "nodes": {name: _data(view) for name, view in (await client.nodes()).items()},
        }
        click.echo(msgspec.json.encode(data))
        if not watch:
            return
        await client.changed()


async def _watch(client: Client, cluster: str) -> None:
    with Live(await _view(client, cluster), auto_refresh=False) as live:
        while True:
            await client.changed()
            live.update(await _view(client, cluster), refresh=True)


async def _view(client: Client, cluster: str) -> Group:
    """The nodes, the cluster's health with reasons, committees, and counters."""
    concerns = await client.concerns()
    health = "healthy" if not concerns else f"degraded: {'; '.join(concerns)}"
    nodes = await client.nodes()
    lines = [health, *committees(nodes), *counted(nodes)]
    return Group(await _table(client, cluster), *map(Text, lines))


async def _table(client: Client, cluster: str) -> Table:
    is_online = await client.is_online()
    table = Table(title=f"cluster {cluster}: gateway {'online' if is_online else 'offline'}")
    for heading in ("node", "status", *(heading for heading, _, _ in _COLUMNS)):
        table.add_column(heading)
    for name, view in (await client.nodes()).items():
        cells = [_cell(view.state, key, shape) for _, key, shape in _COLUMNS]
        # As text: strings from a node could contain rich's markup.
        texts = [Text(cell) for cell in (name, _presence(view), *cells)]
        table.add_row(*texts, style=None if view.is_here else "dim")
    return table


def _presence(view: NodeView) -> str:
    return _NOTHING if view.status is None else view.status.state


def _cell(state: Mapping[str, Any], key: str, shape: str) -> str:
    value = state.get(key)
    if value is None:
        return _NOTHING
    try:
        return shape.format(value)
    except (TypeError, ValueError):
        # The value comes from the network and may have any type.
        return str(value)


def _data(view: NodeView) -> dict[str, Any]:
    return {
        "is_here": view.is_here,
        "presence": None if view.status is None else view.status.state,
        "reason": view.status.reason if view.status is not None else "",
        **view.state,
    }
