"""Parts that targets and drafters share: links, client ids, status, one TaskGroup for all loops."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from edgecosine import __version__
from edgecosine.config import NodeConfig
from edgecosine.counters import Counters
from edgecosine.engine.loading.model_files import display_name
from edgecosine.engine.options import Loaded
from edgecosine.errors import EdgecosineError, PeerFlooded, ungrouped
from edgecosine.mqtt.name_check import check_name
from edgecosine.mqtt.node_status import NodeStatusPublisher
from edgecosine.node.credentials.membership import Membership
from edgecosine.node.links.link import Link, LinkSettings
from edgecosine.node.links.peers import Peers
from edgecosine.node.roles.identity import checkpoint_of
from edgecosine.protocol.api.home_assistant import cluster_device, node_device
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.topics import Topics
from edgecosine.protocol.wire.messages import PROTOCOL_VERSION, Hello, Work
from edgecosine.protocol.wire.vocabulary import Vocabulary
from edgecosine.security.client_ids import ClientIds

logger = logging.getLogger(__name__)


def client_ids_of(config: NodeConfig) -> ClientIds:
    """The MQTT client ids of a node, the same after a restart if their secret can be stored."""
    directory = config.state.identity_dir or config.state.journal_dir
    if directory is None:
        return ClientIds()
    try:
        return ClientIds.kept_in(directory)
    except OSError as error:
        logger.warning("client ids change at each start: reason=%s", error)
        return ClientIds()


def devices_of(config: NodeConfig, model: str) -> list[Outgoing]:
    """What a node announces to Home Assistant; empty unless its settings ask for it."""
    if not config.home_assistant:
        return []
    topics = Topics(config.cluster)
    node = node_device(topics, config.node_id, config.link_role, model, __version__)
    return [cluster_device(topics, __version__), node] if config.role == "target" else [node]


async def run_published(
    config: NodeConfig,
    counters: Counters,
    run: Callable[[NodeStatusPublisher | None], Coroutine[Any, Any, None]],
) -> None:
    """Run a node with its status on MQTT, from before its model is loaded; without a broker
    `run` gets None.

    Raises ConfigError when another node has this one's name, and what `run` raises.
    """
    if config.broker is None:
        await run(None)
        return
    await check_name(config.broker, config.cluster, config.node_id)
    model = display_name(config.engine)
    status = NodeStatusPublisher(
        broker=config.broker,
        cluster=config.cluster,
        node_id=config.node_id,
        counters=counters,
        client_ids=client_ids_of(config),
        devices=devices_of(config, model),
    )
    status.publish_presence("starting", f"loading {model}")
    status.publish_state({"role": config.link_role, "model": model})
    await run_all(config.node_id, status=status.run(), node=run(status))


async def run_all(node_id: str, **loops: Coroutine[Any, Any, Any]) -> None:
    """Run a node's loops until one of them fails or the caller is cancelled.

    Raises the first EdgecosineError.
    """
    # The operator gets one plain reason; the group ends all other loops.
    with ungrouped(EdgecosineError):
        async with asyncio.TaskGroup() as group:
            for role, loop in loops.items():
                group.create_task(loop, name=f"{node_id}.{role}")


def linked_peers(
    config: NodeConfig,
    loaded: Loaded,
    membership: Membership,
    *,
    on_request: Callable[[Link, Work], None],
    on_joined: Callable[[Link], None],
    on_lost: Callable[[Link], None],
) -> Peers:
    """The links of a node, with its greeting and its link policy."""
    tokens = loaded.codec.vocabulary() if loaded.codec else []
    vocabulary = Vocabulary.of(tokens)
    hello = Hello(
        protocol=PROTOCOL_VERSION,
        cluster=config.cluster,
        node_id=config.node_id,
        incarnation=int(time.time() * 1000),
        role=config.link_role,
        model=loaded.name[:256],
        quantization=loaded.quantization,
        vocabulary=vocabulary.digests,
        max_context=loaded.max_context,
        member=config.committee.member,
        weight=config.committee.weight,
        checkpoint=checkpoint_of(config, loaded) if config.role == "member" else "",
        exactness=loaded.exactness if config.role == "member" else "",
    )
    return Peers(
        settings=LinkSettings(
            hello=hello, vocabulary=vocabulary, on_request=on_request, guard=membership.guard
        ),
        listen=membership.listen,
        static=membership.static,
        discover=membership.discover,
        on_joined=on_joined,
        on_lost=on_lost,
    )


def count_lost(counters: Counters, link: Link) -> None:
    """Count a link that has ended, and whether flooding ended it."""
    counters.count("lost_links")
    if isinstance(link.closed.result(), PeerFlooded):
        counters.count("floods")
