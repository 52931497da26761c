"""A gateway node: an HTTP frontend for the targets behind a broker. It needs no model."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from typing import TYPE_CHECKING, Final, NoReturn

from edgecosine.backoff import Backoff
from edgecosine.client.client import Client
from edgecosine.config import NodeConfig
from edgecosine.errors import BrokerLost, RequestError
from edgecosine.http.cluster_events import ClusterEvents
from edgecosine.node.roles.common import run_all
from edgecosine.node.roles.http_frontend import open_frontend
from edgecosine.node.runtime.drain import Drain

if TYPE_CHECKING:
    from edgecosine.http.frontend import HttpFrontend

logger = logging.getLogger(__name__)

_PATIENCE_S: Final = 30.0
"""Seconds for which a request waits for a target that is offline; HTTP clients repeat it then."""


async def run_gateway(config: NodeConfig, drain: Drain) -> None:
    """Serve HTTP until cancelled; requests are refused while there is no broker.

    Raises ConfigError, HttpNotInstalled.
    """
    frontend = await open_frontend(config)
    assert frontend is not None
    broker, cluster = config.broker, config.cluster
    assert broker is not None
    events = ClusterEvents(lambda: Client(broker, cluster), cluster=cluster, node_id=config.node_id)
    frontend.views.metrics, frontend.views.events = _no_metrics, events.read
    await run_all(
        config.node_id,
        http=frontend.run(),
        events=events.run(),
        mqtt=_connect(config, drain, frontend),
    )


def _no_metrics() -> NoReturn:
    raise RequestError("a gateway has no metrics, its targets have", code="unknown_url", status=404)


async def _connect(config: NodeConfig, drain: Drain, frontend: HttpFrontend) -> None:
    """Take requests once the broker is reached; the client reconnects by itself."""
    from edgecosine.http.mqtt_backend import MqttBackend  # packages of the extra `http`

    assert config.broker is not None
    async with contextlib.AsyncExitStack() as stack:
        for attempt in itertools.count(1):
            try:
                client = await stack.enter_async_context(
                    Client(config.broker, config.cluster, patience_s=_PATIENCE_S)
                )
                break
            except BrokerLost as error:
                logger.warning("no broker, retrying: broker=%s reason=%s", config.broker, error)
                await asyncio.sleep(Backoff().delay_s(attempt))
        backend = MqttBackend(client)
        drain.by(backend.wind_down)
        frontend.backend.open(backend)
        await backend.run()
