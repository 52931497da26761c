"""A target: the engine, the sessions that share it, and the door before them."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Mapping

from edgecosine.balance.planner import Planner
from edgecosine.config import NodeConfig
from edgecosine.counters import Counters
from edgecosine.engine.loading.options import Loaded
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
from edgecosine.node.durability.boot_clock import BootTime
from edgecosine.node.durability.journal import DiskJournal
from edgecosine.node.durability.recovery import NO_PAST, read_past
from edgecosine.node.gateway.gateway import Gateway
from edgecosine.node.gateway.request_manager import model_of
from edgecosine.node.links.link import Link
from edgecosine.node.links.peers import Peers
from edgecosine.node.runtime.drain import Drain
from edgecosine.node.runtime.engine_thread import EngineThread
from edgecosine.node.runtime.load_engine import load_target
from edgecosine.node.state_report import target_state
from edgecosine.node.target.draft_client import DrafterLink
from edgecosine.node.target.engine_watchdog import EngineWatchdog
from edgecosine.node.target.text_service import TextService
from edgecosine.node.target.verifier import Verifier
from edgecosine.protocol.api.request import NodeState
from edgecosine.protocol.wire.messages import DraftRequest, Release

logger = logging.getLogger(__name__)

_CANARY_PROMPT = "Are you there?"


async def run_target(
    config: NodeConfig, thread: EngineThread, membership: Membership, drain: Drain
) -> None:  # fmt: skip
    """Serve the cluster's target until cancelled.

    Raises ConfigError, EngineError, JournalLost.
    """
    broker = config.broker
    assert broker is not None
    journal = DiskJournal(config.state.journal_dir) if config.state.journal_dir else None
    logger.info("loading: node=%s model=%s", config.node_id, config.engine.model)
    engine, loaded = await thread.run(functools.partial(load_target, config))
    assert loaded.codec is not None
    identity = identity_of(config, loaded)
    await check_name(broker, config.cluster, config.node_id)
    balancer = Planner()
    verifying = Verifier(
        engine=engine,
        thread=thread,
        max_batch=config.max_sessions,
        costs=balancer,
    )

    counters = Counters()
    counters.count("restarts", by=journal.num_starts - 1 if journal else 0)

    def on_lost(link: Link) -> None:
        count_lost(counters, link)
        balancer.part(link.peer.node_id)
        log_lost(link)

    def on_joined(link: Link) -> None:
        log_joined(link)
        balancer.welcome(link.peer.node_id)

    peers = linked_peers(
        config, loaded, membership,
        on_request=_refuse_work, on_joined=on_joined, on_lost=on_lost,
    )  # fmt: skip
    serving = TextService(
        model=loaded.name,
        codec=loaded.codec,
        max_context=loaded.max_context,
        max_sessions=config.max_sessions,
        exactness=loaded.exactness,
        verifying=verifying,
        balancer=balancer,
        drafters=lambda: _drafters(peers),
    )
    past = read_past(journal, model_of(serving), BootTime.now()) if journal else NO_PAST
    client_ids = client_ids_of(config)
    gateway = Gateway(
        serving,
        broker=broker,
        cluster=config.cluster,
        node_id=config.node_id,
        counters=counters,
        journal=journal,
        past=past,
        keep_answers_s=config.state.keep_answers,
        identity=identity,
        client_ids=client_ids,
    )
    presence = NodeStatusPublisher(
        broker=broker, cluster=config.cluster, node_id=config.node_id, counters=counters,
        client_ids=client_ids,
    )  # fmt: skip

    def on_readiness(reason: str | None) -> None:
        presence.publish_presence("ready" if reason is None else "unavailable", reason or "")
        gateway.heed(reason)
        if reason is not None:
            counters.count("stalls")

    readiness = EngineWatchdog(
        passes=verifying,
        prompt=loaded.codec.encode(_CANARY_PROMPT),
        is_exact=loaded.exactness == "bitwise",
        on_change=on_readiness,
        stall_s=config.stall_timeout_s,
    )

    async def wind_down() -> None:
        presence.publish_presence("draining")
        await gateway.drain()

    drain.by(wind_down)

    def state() -> NodeState:
        return target_state(
            loaded, identity, serving, verifying, balancer, peers, gateway, journal, counters
        )

    await run_all(
        config.node_id,
        peers=peers.run(),
        verifying=verifying.run(),
        readiness=readiness.run(),
        gateway=gateway.run(),
        presence=presence.run(),
        state=publish_state(presence, state),
    )


def identity_of(config: NodeConfig, loaded: Loaded) -> str:
    """Names what a target's texts depend on beside the requests."""
    facts = (
        loaded.digest, loaded.dtype, loaded.form, loaded.exactness, loaded.max_context,
        config.engine.ballast, config.engine.tensor_parallel,
    )  # fmt: skip
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def _drafters(peers: Peers) -> Mapping[str, DrafterLink]:
    """Who may be asked now, by node id."""
    return {node_id: link for node_id, link in peers.links.items() if not link.is_leaving}


def _refuse_work(link: Link, _: DraftRequest | Release) -> None:
    link.close("a target drafts for nobody")
