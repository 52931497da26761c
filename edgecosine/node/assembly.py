"""What both kinds of node are made of: their links, and one TaskGroup for all loops."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from edgecosine.config import NodeConfig
from edgecosine.engine.options import Loaded
from edgecosine.errors import EdgecosineError, root_of
from edgecosine.node.link import Link, LinkSettings
from edgecosine.node.membership import Membership
from edgecosine.node.peers import Peers
from edgecosine.protocol.messages import PROTOCOL_VERSION, DraftRequest, Hello, Release
from edgecosine.protocol.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


async def run_all(node_id: str, **loops: Coroutine[Any, Any, Any]) -> None:
    """Run a node's loops until one of them ends it.

    Raises the first EdgecosineError.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for role, loop in loops.items():
                group.create_task(loop, name=f"{node_id}.{role}")
    except* EdgecosineError as errors:
        # One plain reason for the operator; the group has ended everything else.
        raise root_of(errors) from None


def linked_peers(
    config: NodeConfig,
    loaded: Loaded,
    membership: Membership,
    *,
    on_request: Callable[[Link, DraftRequest | Release], None],
    on_joined: Callable[[Link], None],
    on_lost: Callable[[Link], None],
) -> Peers:
    """Who a node is linked with, and how it introduces itself."""
    tokens = loaded.codec.vocabulary() if loaded.codec else []
    vocabulary = Vocabulary.of(tokens)
    hello = Hello(
        protocol=PROTOCOL_VERSION,
        cluster=config.cluster,
        node_id=config.node_id,
        incarnation=int(time.time() * 1000),
        role=config.role,
        model=loaded.name[:256],
        quantization=loaded.quantization,
        vocabulary=vocabulary.digests,
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


def log_joined(link: Link) -> None:
    """Say that a link stands."""
    peer = link.peer
    logger.info(
        "joined: peer=%s role=%s model=%s quantization=%s",
        peer.node_id, peer.role, peer.model, peer.quantization,
    )  # fmt: skip


def log_lost(link: Link) -> None:
    """Say that a link has ended."""
    logger.info("lost: peer=%s reason=%s", link.peer.node_id, link.closed.result())
