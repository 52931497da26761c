"""A drafter node: the draft engine and the links of the targets that request drafts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging

from edgecosine.config import NodeConfig
from edgecosine.counters import Counters
from edgecosine.engine.base import DraftEngine
from edgecosine.engine.options import Loaded
from edgecosine.errors import LinkError
from edgecosine.mqtt.name_check import check_name
from edgecosine.mqtt.node_status import NodeStatusPublisher, publish_state
from edgecosine.node.credentials.membership import Membership
from edgecosine.node.drafter.draft_worker import MAX_TOKEN, DraftWorker
from edgecosine.node.links.link import Link
from edgecosine.node.roles.common import (
    client_ids_of,
    count_lost,
    devices_of,
    linked_peers,
    run_all,
)
from edgecosine.node.roles.state_report import drafter_state
from edgecosine.node.runtime.drain import Drain
from edgecosine.node.runtime.engine_thread import EngineThread
from edgecosine.node.runtime.load_engine import load_drafter
from edgecosine.node.runtime.service_manager import notify_ready, notify_stopping
from edgecosine.protocol.api.request import NodeState
from edgecosine.protocol.wire.messages import DraftRequest, Leave, Release

logger = logging.getLogger(__name__)

_LAST_REQUESTS_S = 0.25


async def run_drafter(
    config: NodeConfig, thread: EngineThread, membership: Membership, drain: Drain
) -> None:
    """Load the engine, then draft for the cluster's targets until cancelled.

    Raises EngineError, and ConfigError when another node has this one's name.
    """
    logger.info("loading: node=%s model=%s", config.node_id, config.engine.model)
    engine, loaded = await thread.run(functools.partial(load_drafter, config))
    if config.broker is not None:
        await check_name(config.broker, config.cluster, config.node_id)
    node = DrafterNode(config, engine, loaded, thread, membership, drain)
    drain.by(node.wind_down)
    await node.run()


class DrafterNode:
    """The actors of a drafter, which draft with the `engine` that is given."""

    def __init__(
        self,
        config: NodeConfig,
        engine: DraftEngine,
        loaded: Loaded,
        thread: EngineThread,
        membership: Membership,
        drain: Drain,
    ) -> None:
        self._config, self._loaded, self._drain = config, loaded, drain
        self._counters = Counters()
        self._worker = DraftWorker(
            engine=engine,
            thread=thread,
            max_batch=config.engine.slots,
            num_vocabulary=loaded.codec.num_tokens if loaded.codec else MAX_TOKEN,
        )
        self._peers = linked_peers(
            config,
            loaded,
            membership,
            on_request=self._on_request,
            on_joined=self._on_joined,
            on_lost=self._on_lost,
        )
        self._status: NodeStatusPublisher | None = None
        if config.broker is not None:
            self._status = NodeStatusPublisher(
                broker=config.broker,
                cluster=config.cluster,
                node_id=config.node_id,
                counters=self._counters,
                client_ids=client_ids_of(config),
                devices=devices_of(config, loaded.name),
            )

    async def run(self) -> None:
        """Run all actors until cancelled.

        Raises the first EdgecosineError of any of them.
        """
        loops = {"peers": self._peers.run(), "worker": self._worker.run()}
        if self._status is not None:
            self._status.publish_presence("ready")
            state = publish_state(self._status, self._state)
            loops |= {"status": self._status.run(), "state": state}
        notify_ready(f"drafting with {self._loaded.name}")
        await run_all(self._config.node_id, **loops)

    async def wind_down(self) -> None:
        """Announce the end to all targets; returns when no draft is requested any more."""
        notify_stopping()
        if self._status is not None:
            self._status.publish_presence("draining")
        for link in self._peers.links.values():
            with contextlib.suppress(LinkError):
                link.send(Leave())
        # Requests that were sent before the announcement arrived may still be on their way.
        await asyncio.sleep(_LAST_REQUESTS_S)
        await self._worker.idle()

    def _state(self) -> NodeState:
        return drafter_state(self._loaded, self._worker, self._peers, self._counters)

    def _on_request(self, link: Link, message: DraftRequest | Release) -> None:
        self._worker.on_request(message, link.send, link.peer.node_id)

    def _on_joined(self, link: Link) -> None:
        if self._drain.is_requested:
            link.send(Leave())

    def _on_lost(self, link: Link) -> None:
        count_lost(self._counters, link)
        if not self._peers.links:
            self._worker.drop_all()
