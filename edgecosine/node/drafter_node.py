"""A drafter: the engine that guesses, and the links of those who ask it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging

from edgecosine.config import NodeConfig
from edgecosine.counters import Counters
from edgecosine.errors import LinkError
from edgecosine.mqtt.name_check import check_name
from edgecosine.mqtt.node_status import NodeStatusPublisher, publish_state
from edgecosine.node.common import (
    client_ids_of,
    count_lost,
    linked_peers,
    log_joined,
    log_lost,
    run_all,
)
from edgecosine.node.credentials.membership import Membership
from edgecosine.node.drafter.draft_worker import MAX_TOKEN, DraftWorker
from edgecosine.node.links.link import Link
from edgecosine.node.runtime.drain import Drain
from edgecosine.node.runtime.engine_thread import EngineThread
from edgecosine.node.runtime.load_engine import load_drafter
from edgecosine.node.state_report import drafter_state
from edgecosine.protocol.api.request import NodeState
from edgecosine.protocol.wire.messages import DraftRequest, Leave, Release

logger = logging.getLogger(__name__)

_LAST_ASKS_S = 0.25


async def run_drafter(
    config: NodeConfig, thread: EngineThread, membership: Membership, drain: Drain
) -> None:  # fmt: skip
    """Draft for the cluster's target until cancelled.

    Raises EngineError, and ConfigError when another node has this one's name.
    """
    logger.info("loading: node=%s model=%s", config.node_id, config.engine.model)
    engine, loaded = await thread.run(functools.partial(load_drafter, config))
    broker = config.broker
    if broker is not None:
        await check_name(broker, config.cluster, config.node_id)
    drafting = DraftWorker(
        engine=engine,
        thread=thread,
        max_batch=config.engine.slots,
        num_vocabulary=loaded.codec.num_tokens if loaded.codec else MAX_TOKEN,
    )

    def on_request(link: Link, message: DraftRequest | Release) -> None:
        drafting.on_request(message, link.send, link.peer.node_id)

    counters = Counters()

    def on_lost(link: Link) -> None:
        count_lost(counters, link)
        log_lost(link)
        if not peers.links:
            drafting.forget_all()

    def on_joined(link: Link) -> None:
        log_joined(link)
        if drain.is_requested:
            link.send(Leave())

    peers = linked_peers(
        config, loaded, membership, on_request=on_request, on_joined=on_joined, on_lost=on_lost
    )
    presence: NodeStatusPublisher | None = None

    async def wind_down() -> None:
        if presence is not None:
            presence.publish_presence("draining")
        for link in peers.links.values():
            with contextlib.suppress(LinkError):
                link.send(Leave())
        # What was asked before they heard of it may still be on its way.
        await asyncio.sleep(_LAST_ASKS_S)
        await drafting.idle()

    drain.by(wind_down)
    loops = {"peers": peers.run(), "drafting": drafting.run()}
    if broker is not None:
        presence = NodeStatusPublisher(
            broker=broker, cluster=config.cluster, node_id=config.node_id, counters=counters,
            client_ids=client_ids_of(config),
        )  # fmt: skip

        def state() -> NodeState:
            return drafter_state(loaded, drafting, peers, counters)

        presence.publish_presence("ready")
        loops |= {"presence": presence.run(), "state": publish_state(presence, state)}
    await run_all(config.node_id, **loops)
