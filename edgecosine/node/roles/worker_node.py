"""A node that works for targets: a drafter, or a member of a committee."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from edgecosine.config import NodeConfig
from edgecosine.counters import Counters
from edgecosine.engine.base import DraftEngine, MemberEngine
from edgecosine.engine.options import Loaded
from edgecosine.errors import LinkError
from edgecosine.mqtt.node_status import NodeStatusPublisher, publish_state
from edgecosine.node.credentials.membership import Membership
from edgecosine.node.drafter.draft_worker import DraftWorker
from edgecosine.node.links.link import Link
from edgecosine.node.links.peers import Peers
from edgecosine.node.member.member_worker import MemberWorker
from edgecosine.node.roles.common import count_lost, linked_peers, run_all, run_published
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

Engine = TypeVar("Engine")


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

    def worker_of(engine: DraftEngine, loaded: Loaded) -> tuple[Worker, State]:
        worker = DraftWorker(
            engine=engine,
            thread=thread,
            max_batch=config.engine.slots,
            num_vocabulary=loaded.codec.num_tokens if loaded.codec else MAX_TOKEN,
        )
        return worker, functools.partial(drafter_state, loaded, worker)

    await _run(load, worker_of, config, thread, membership, drain)


async def run_member(
    config: NodeConfig, thread: EngineThread, membership: Membership, drain: Drain
) -> None:
    """Load the engine, then judge for the cluster's targets until cancelled; raises as
    `run_drafter`."""

    def worker_of(engine: MemberEngine, loaded: Loaded) -> tuple[Worker, State]:
        worker = MemberWorker(
            engine=engine,
            thread=thread,
            max_batch=config.engine.slots,
            num_vocabulary=loaded.num_rows,
        )
        return worker, functools.partial(member_state, loaded, worker, config.committee.member)

    await _run(load_target, worker_of, config, thread, membership, drain)


async def _run(
    load: Callable[[NodeConfig], tuple[Engine, Loaded]],
    worker_of: Callable[[Engine, Loaded], tuple[Worker, State]],
    config: NodeConfig,
    thread: EngineThread,
    membership: Membership,
    drain: Drain,
) -> None:
    counters = Counters()

    async def run(status: NodeStatusPublisher | None) -> None:
        logger.info("loading: node=%s model=%s", config.node_id, config.engine.model)
        engine, loaded = await thread.run(functools.partial(load, config))
        worker, state = worker_of(engine, loaded)
        node = WorkerNode(config, worker, state, loaded, membership, drain, status, counters)
        drain.by(node.wind_down)
        await node.run()

    await run_published(config, counters, run)


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
        status: NodeStatusPublisher | None,
        counters: Counters,
    ) -> None:
        self._config, self._worker, self._drain = config, worker, drain
        self._report, self._counters, self._model = state, counters, loaded.name
        self._status = status
        self._peers = linked_peers(
            config,
            loaded,
            membership,
            on_request=self._on_request,
            on_joined=self._on_joined,
            on_lost=self._on_lost,
        )

    async def run(self) -> None:
        """Run all actors until cancelled.

        Raises the first EdgecosineError of any of them.
        """
        loops: dict[str, Coroutine[Any, Any, Any]] = {
            "peers": self._peers.run(),
            "worker": self._worker.run(),
        }
        if self._status is not None:
            self._status.publish_presence("ready")
            loops["state"] = publish_state(self._status, self._state)
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
