"""A target node: the engine, the sessions that share it, the gateway and the links to drafters."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from edgecosine import __version__
from edgecosine.config import NodeConfig
from edgecosine.counters import Counters
from edgecosine.engine.base import MemberEngine
from edgecosine.engine.options import Loaded
from edgecosine.engine.tokenizer import TextCodec
from edgecosine.metrics.families import Family, target_metrics
from edgecosine.metrics.measurements import Measurements
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.node_status import NodeStatusPublisher, publish_state
from edgecosine.node.credentials.membership import Membership
from edgecosine.node.durability.boot_clock import BootTime
from edgecosine.node.durability.journal import DiskJournal
from edgecosine.node.durability.recovery import NOTHING_RECOVERED, recover
from edgecosine.node.gateway.gateway import Gateway
from edgecosine.node.gateway.local_requests import LocalRequests
from edgecosine.node.gateway.service import model_of
from edgecosine.node.links.link import Link
from edgecosine.node.roles.committee_links import CommitteeLinks
from edgecosine.node.roles.common import (
    client_ids_of,
    count_lost,
    linked_peers,
    run_all,
    run_published,
)
from edgecosine.node.roles.http_frontend import open_frontend
from edgecosine.node.roles.identity import identity_of, served_name
from edgecosine.node.roles.state_report import target_state
from edgecosine.node.roles.target_parts import (
    new_cluster_events,
    new_member_worker,
    new_planner,
    new_verifier,
)
from edgecosine.node.runtime.drain import Drain
from edgecosine.node.runtime.engine_thread import EngineThread
from edgecosine.node.runtime.load_engine import load_coordinator, load_target
from edgecosine.node.runtime.service_manager import (
    notify_ready,
    notify_status,
    notify_stopping,
)
from edgecosine.node.target.engine_watchdog import EngineWatchdog
from edgecosine.node.target.text_service import TextService
from edgecosine.protocol.api.result import NodeState
from edgecosine.protocol.wire.messages import Work

if TYPE_CHECKING:
    from edgecosine.http.frontend import HttpFrontend

logger = logging.getLogger(__name__)

_CANARY_PROMPT = "Are you there?"


async def run_target(
    config: NodeConfig, thread: EngineThread, membership: Membership, drain: Drain
) -> None:
    """Load the engine, then serve requests until cancelled.

    Raises ConfigError, EngineError, JournalLost.
    """
    frontend = await open_frontend(config)
    counters = Counters()

    async def serve(status: NodeStatusPublisher | None) -> None:
        assert status is not None
        await _serve(config, thread, membership, drain, frontend, status, counters)

    serving = run_published(config, counters, serve)
    loops = {"target": serving} if frontend is None else {"http": frontend.run(), "target": serving}
    await run_all(config.node_id, **loops)


async def _serve(
    config: NodeConfig,
    thread: EngineThread,
    membership: Membership,
    drain: Drain,
    frontend: HttpFrontend | None,
    status: NodeStatusPublisher,
    counters: Counters,
) -> None:
    """Load the engine, then serve requests; over HTTP they are refused until then."""
    directory = config.state.journal_dir
    journal = DiskJournal(directory) if directory is not None else None
    logger.info("loading: node=%s model=%s", config.node_id, config.engine.model)
    engine: MemberEngine | None = None
    if config.committee.own_weight:
        engine, loaded = await thread.run(functools.partial(load_target, config))
    else:
        loaded = await thread.run(functools.partial(load_coordinator, config))
    node = TargetNode(config, engine, loaded, thread, membership, journal, status, counters)
    drain.by(node.wind_down)

    def on_open() -> None:
        if frontend is not None:
            frontend.backend.open(node.local)

    if frontend is not None:
        frontend.views.metrics = node.metrics
        frontend.views.events = node.events.read
    await node.run(on_open)


class TargetNode:
    """The actors of a target. Its texts come from `engine`, or from its committee's members alone
    if that is None."""

    def __init__(
        self,
        config: NodeConfig,
        engine: MemberEngine | None,
        loaded: Loaded,
        thread: EngineThread,
        membership: Membership,
        journal: DiskJournal | None,
        status: NodeStatusPublisher,
        counters: Counters,
    ) -> None:
        assert config.broker is not None
        assert loaded.codec is not None
        self._config, self._loaded, self._journal = config, loaded, journal
        self._status, self._counters = status, counters
        self._counters.count("restarts", by=journal.num_starts - 1 if journal else 0)
        self._measurements = Measurements()
        self._planner = new_planner(config)
        self._member_worker = new_member_worker(config, engine, loaded, thread)
        self._committee = (
            CommitteeLinks(config, loaded, self._member_worker)
            if config.committee.committee
            else None
        )
        self._verifier = new_verifier(
            config, engine, loaded, thread, self._planner, self._committee
        )
        self._drafters: dict[str, Link] = {}
        self._peers = linked_peers(
            config,
            loaded,
            membership,
            on_request=_refuse_work,
            on_joined=self._on_joined,
            on_lost=self._on_lost,
        )
        self._service = self._new_service(loaded.codec)
        self._gateway = self._new_gateway(config.broker)
        self._watchdog = self._new_watchdog(loaded.codec)
        self.events = new_cluster_events(config, config.broker, self._measurements)
        """The cluster's events for the page."""
        if self._committee is not None:
            self._committee.committee.on_stall = self._gateway.set_stall

    def _new_service(self, codec: TextCodec) -> TextService:
        config, loaded = self._config, self._loaded
        return TextService(
            model=served_name(config, loaded),
            codec=codec,
            max_context=loaded.max_context,
            max_sessions=config.max_sessions,
            exactness=loaded.exactness,
            verifier=self._verifier,
            planner=self._planner,
            drafters=lambda: self._drafters,
            tool_format=config.tool_format,
            measurements=self._measurements,
            identity=self._identity,
            committee=self._committee_facts if self._committee else None,
        )

    def _new_gateway(self, broker: BrokerAddress) -> Gateway:
        config, journal = self._config, self._journal
        recovered = (
            recover(journal, model_of(self._service), BootTime.now())
            if journal
            else NOTHING_RECOVERED
        )
        return Gateway(
            self._service,
            broker=broker,
            cluster=config.cluster,
            node_id=config.node_id,
            counters=self._counters,
            journal=journal,
            recovered=recovered,
            keep_answers_s=config.state.keep_answers,
            max_queued=config.max_queued,
            client_ids=client_ids_of(config),
            measurements=self._measurements,
        )

    def _new_watchdog(self, codec: TextCodec) -> EngineWatchdog:
        return EngineWatchdog(
            passes=self._verifier,
            prompt=codec.encode(_CANARY_PROMPT),
            is_exact=self._loaded.exactness == "bitwise" and self._committee is None,
            on_change=self._on_readiness,
            stall_s=self._config.stall_timeout_s,
            cause=self._stall,
        )

    @property
    def local(self) -> LocalRequests:
        """Takes requests over HTTP."""
        return self._gateway.local

    async def run(self, on_open: Callable[[], object]) -> None:
        """Run all actors until cancelled; `on_open` is called when the node takes requests.

        Raises the first EdgecosineError of any of them.
        """
        loops = {} if self._member_worker is None else {"member": self._member_worker.run()}
        await run_all(
            self._config.node_id,
            **loops,
            peers=self._peers.run(),
            verifier=self._verifier.run(),
            watchdog=self._watchdog.run(),
            gateway=self._take_requests(on_open),
            state=publish_state(self._status, self._state),
            events=self.events.run(),
        )

    async def _take_requests(self, on_open: Callable[[], object]) -> NoReturn:
        """Serve requests, once all models that determine the texts are known."""
        if (links := self._committee) is not None and not links.complete.is_set():
            logger.info("waiting for the committee: members=%s", ",".join(links.committee.away))
            await links.complete.wait()
        identity = self._identity()
        logger.info(
            "taking requests: model=%s identity=%s", self._service.info["models"][0], identity
        )
        self._gateway.queue.identify(identity)
        on_open()
        await self._gateway.run()

    def _identity(self) -> str:
        """What the texts depend on; empty while a member of the committee is unknown."""
        if (links := self._committee) is None:
            return identity_of(self._config, self._loaded)
        if not links.complete.is_set():
            return ""
        return identity_of(self._config, self._loaded, links.checkpoints)

    def metrics(self) -> list[Family]:
        """All metrics, as they are now."""
        return target_metrics(self._measurements, self._state(), __version__)

    async def wind_down(self) -> None:
        """Accept no new requests; returns when the running ones have ended."""
        self._status.publish_presence("draining")
        notify_stopping()
        await self._gateway.drain()

    def _state(self) -> NodeState:
        return target_state(
            self._loaded,
            self._identity(),
            self._service,
            self._verifier,
            self._planner,
            self._peers,
            self._gateway,
            self._journal,
            self._counters,
            self._measurements,
            self._committee,
        )

    def _on_joined(self, link: Link) -> None:
        if link.peer.role == "member":
            if self._committee is None:
                link.close("this target leads no committee: start it with --committee")
            else:
                self._committee.add(link)
            return
        self._drafters[link.peer.node_id] = link
        self._planner.statistics.add_link(
            link.peer.node_id, link.host, is_beside=link.is_within_machine
        )

    def _on_lost(self, link: Link) -> None:
        count_lost(self._counters, link)
        if link.peer.role == "member":
            if self._committee is not None:
                self._committee.remove(link)
            return
        del self._drafters[link.peer.node_id]
        self._planner.statistics.remove_link(link.peer.node_id)

    def _committee_facts(self) -> Mapping[str, Any]:
        return {} if self._committee is None else self._committee.facts

    def _stall(self) -> str | None:
        return None if self._committee is None else self._committee.committee.stall

    def _on_readiness(self, reason: str | None) -> None:
        self._status.publish_presence("ready" if reason is None else "unavailable", reason or "")
        self._gateway.set_unavailable(reason)
        if reason is None:
            notify_ready(f"serving {self._loaded.name}")
        else:
            notify_status(f"unavailable: {reason}")
            self._counters.count("stalls")


def _refuse_work(link: Link, _: Work) -> None:
    link.close("this node is a target and does not accept draft requests")
