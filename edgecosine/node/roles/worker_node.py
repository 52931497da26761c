"""A node that works for targets: a drafter, or a member of a committee."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from edgecosine.config import NodeConfig
from edgecosine.counters import Counters
from edgecosine.engine.base import DraftEngine
from edgecosine.engine.options import Loaded
from edgecosine.errors import LinkError
from edgecosine.mqtt.name_check import check_name
from edgecosine.mqtt.node_status import NodeStatusPublisher, publish_state
from edgecosine.node.credentials.membership import Membership
from edgecosine.node.drafter.draft_worker import DraftWorker
from edgecosine.node.links.link import Link
from edgecosine.node.links.peers import Peers
from edgecosine.node.member.member_worker import MemberWorker
from edgecosine.node.roles.common import (
    client_ids_of,
    count_lost,
    devices_of,
    linked_peers,
    run_all,
)
from edgecosine.node.roles.state_report import drafter_state, member_state
from edgecosine.node.runtime.drain import Drain
from edgecosine.node.runtime.engine_thread import EngineThread
from edgecosine.node.runtime.held_prefixes import MAX_TOKEN
from edgecosine.node.runtime.load_engine import load_target
from edgecosine.node.runtime.service_manager import notify_ready, notify_stopping
from edgecosine.protocol.api.result import NodeState
from edgecosine.protocol.wire.messages import AnyMessage, Leave, Work

logger = logging.getLogger(__name__)

_LAST_REQUESTS_S = 0.25


class Worker(Protocol):
    """Answers the requests of targets."""

    def on_request(self, message: Any, reply: Callable[[AnyMessage], None], target: str) -> None:
        """Handle a message of a kind that the handshake lets this role receive."""

    def drop_all(self) -> None:
        """Drop all waiting requests, and free their caches."""

    async def idle(self) -> None:
        """Wait until no request is running or queued."""

    def run(self) -> Coroutine[Any, Any, None]:
        """Work until cancelled."""


State = Callable[[Peers, Counters], NodeState]
LoadDrafter = Callable[[NodeConfig], tuple[DraftEngine, Loaded]]
"""Runs in the engine's thread."""


async def run_drafter(
    load: LoadDrafter,
    config: NodeConfig,
    thread: EngineThread,
    membership: Membership,
    drain: Drain,
) -> None:
    """Load the engine, then draft for the cluster's targets until cancelled.

    Raises EngineError, and ConfigError when another node has this one's name.
    """
    logger.info("loading: node=%s model=%s", config.node_id, config.engine.model)
    engine, loaded = await thread.run(functools.partial(load, config))
    worker = DraftWorker(
        engine=engine,
        thread=thread,
        max_batch=config.engine.slots,
        num_vocabulary=loaded.codec.num_tokens if loaded.codec else MAX_TOKEN,
    )
    state = functools.partial(drafter_state, loaded, worker)
    await _run(WorkerNode(config, worker, state, loaded, membership, drain), config, drain)


async def run_member(
    config: NodeConfig, thread: EngineThread, membership: Membership, drain: Drain
) -> None:
    """Load the engine, then judge for the cluster's targets until cancelled; raises as
    `run_drafter`."""
    logger.info("loading: node=%s model=%s", config.node_id, config.engine.model)
    engine, loaded = await thread.run(functools.partial(load_target, config))
    worker = MemberWorker(
        engine=engine,
        thread=thread,
        max_batch=config.engine.slots,
        num_vocabulary=loaded.num_rows,
    )
    state = functools.partial(member_state, loaded, worker, config.committee.member)
    await _run(WorkerNode(config, worker, state, loaded, membership, drain), config, drain)


async def _run(node: WorkerNode, config: NodeConfig, drain: Drain) -> None:
    if config.broker is not None:
        await check_name(config.broker, config.cluster, config.node_id)
    drain.by(node.wind_down)
    await node.run()


class WorkerNode:
    """The actors of a drafter or a member, around the `worker` that is given."""

    def __init__(
        self,
        config: NodeConfig,
        worker: Worker,
        state: State,
        loaded: Loaded,
        membership: Membership,
        drain: Drain,
    ) -> None:
        self._config, self._worker, self._drain = config, worker, drain
        self._report, self._counters, self._model = state, Counters(), loaded.name
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
        notify_ready(f"{self._config.role} with {self._model}")
        await run_all(self._config.node_id, **loops)

    async def wind_down(self) -> None:
        """Announce the end to all targets; returns when no more work is requested."""
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
        return self._report(self._peers, self._counters)

    def _on_request(self, link: Link, message: Work) -> None:
        self._worker.on_request(message, link.send, link.peer.node_id)

    def _on_joined(self, link: Link) -> None:
        if self._drain.is_requested:
            link.send(Leave())

    def _on_lost(self, link: Link) -> None:
        count_lost(self._counters, link)
        if not self._peers.links:
            self._worker.drop_all()
