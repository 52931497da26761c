"""The composition root: loads the engine, builds the actors, wires them, runs one TaskGroup."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from edgecosine.config import NodeConfig
from edgecosine.engine.options import Loaded
from edgecosine.errors import BrokerLost, ConfigError, EdgecosineError, LinkError
from edgecosine.node.balancer import Balancer
from edgecosine.node.broker_address import BrokerAddress
from edgecosine.node.client import Client
from edgecosine.node.consulting import DrafterLink
from edgecosine.node.counters import Counters
from edgecosine.node.drafting import MAX_TOKEN, Drafting
from edgecosine.node.draining import Drain, Drained
from edgecosine.node.engine_thread import EngineThread
from edgecosine.node.engines import load_drafter, load_target
from edgecosine.node.gateway import Gateway
from edgecosine.node.guard import is_loopback
from edgecosine.node.link import Link, LinkSettings
from edgecosine.node.membership import Membership
from edgecosine.node.peers import Peers
from edgecosine.node.presence import Presence, publish_state
from edgecosine.node.readiness import Readiness
from edgecosine.node.serving import Serving
from edgecosine.node.state import drafter_state, target_state
from edgecosine.node.verifying import Verifying
from edgecosine.protocol.messages import PROTOCOL_VERSION, DraftRequest, Hello, Leave, Release
from edgecosine.protocol.request import NodeState
from edgecosine.protocol.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_CANARY_PROMPT = "Are you there?"
_LAST_ASKS_S = 0.25


async def run_node(config: NodeConfig, drain: Drain | None = None) -> None:
    """Run one node until cancelled, or until it has finished its work after `drain.request()`.

    Raises EngineError when the model cannot be served, ConfigError when a setting is wrong.
    """
    broker = _broker_address(config)
    if broker is None and config.role == "target":
        raise ConfigError("broker", config.broker, "an MQTT URL: requests come from there")
    # What is wrong is refused before anything is loaded.
    membership = Membership(config)
    if broker is not None and not broker.is_encrypted and not is_loopback(broker.host):
        logger.warning(
            "UNENCRYPTED: prompts and answers cross the network to the broker at %s in plain; "
            "mqtts:// protects them", broker,
        )  # fmt: skip
    with EngineThread(f"{config.node_id}.engine") as thread:
        run = _run_target if config.role == "target" else _run_drafter
        drain = drain or Drain(config.drain_timeout_s)
        try:
            # Others can be let in while the model is loading.
            await _run_all(
                config.node_id,
                membership=membership.run(),
                node=run(config, broker, thread, membership, drain),
                drain=drain.run(),
            )
        except Drained as reason:
            logger.info("drained: node=%s reason=%s", config.node_id, reason)


def _broker_address(config: NodeConfig) -> BrokerAddress | None:
    if config.broker == "none":
        return None
    return BrokerAddress.parse(
        config.broker,
        username=config.broker_username,
        password=config.broker_password,
        ca_file=config.broker_ca,
        certificate_file=config.broker_certificate,
        keepalive_s=config.broker_keepalive,
    )


async def _run_target(
    config: NodeConfig, broker: BrokerAddress | None, thread: EngineThread, membership: Membership,
    drain: Drain,
) -> None:  # fmt: skip
    assert broker is not None
    await _refuse_second_target(config, broker)
    logger.info("loading: node=%s model=%s", config.node_id, config.model)
    engine, loaded = await thread.run(functools.partial(load_target, config))
    assert loaded.codec is not None
    balancer = Balancer()
    verifying = Verifying(
        engine=engine,
        thread=thread,
        max_batch=config.max_sessions,
        costs=balancer,
    )

    counters = Counters()

    def on_lost(link: Link) -> None:
        counters.count("lost_links")
        _log_lost(link)

    def on_joined(link: Link) -> None:
        _log_joined(link)
        balancer.welcome(link.peer.node_id)

    peers = _peers(
        config, loaded, membership,
        on_request=_refuse_work, on_joined=on_joined, on_lost=on_lost,
    )  # fmt: skip
    serving = Serving(
        model=loaded.name,
        codec=loaded.codec,
        max_context=loaded.max_context,
        max_sessions=config.max_sessions,
        exactness=loaded.exactness,
        verifying=verifying,
        balancer=balancer,
        drafters=lambda: _drafters(peers),
    )
    gateway = Gateway(
        serving, broker=broker, cluster=config.cluster, node_id=config.node_id, counters=counters
    )
    presence = Presence(
        broker=broker, cluster=config.cluster, node_id=config.node_id, counters=counters
    )

    def on_readiness(reason: str | None) -> None:
        presence.publish_presence("ready" if reason is None else "unavailable", reason or "")
        gateway.heed(reason)
        if reason is not None:
            counters.count("stalls")

    readiness = Readiness(
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
        return target_state(loaded, serving, verifying, balancer, peers, gateway, counters)

    await _run_all(
        config.node_id,
        peers=peers.run(),
        verifying=verifying.run(),
        readiness=readiness.run(),
        gateway=gateway.run(),
        presence=presence.run(),
        state=publish_state(presence, state),
    )


async def _refuse_second_target(config: NodeConfig, broker: BrokerAddress) -> None:
    """Two targets of one cluster would answer every request twice.

    Raises ConfigError when another one is at work. Without a broker there is nobody to ask: the
    gateway goes on trying, and says so.
    """
    try:
        async with Client(broker, config.cluster) as client:
            views = await client.nodes()
    except BrokerLost as error:
        logger.warning(
            "no broker at %s (%s): start one by `edgecosine broker`, or name yours by --broker; "
            "trying on", broker, error,
        )  # fmt: skip
        return
    for node_id, view in views.items():
        if view.is_here and view.state.get("role") == "target" and node_id != config.node_id:
            allowed = f"a cluster without a target; {node_id} serves this one: stop it or choose"
            raise ConfigError("cluster", config.cluster, f"{allowed} another --cluster")


async def _run_drafter(
    config: NodeConfig, broker: BrokerAddress | None, thread: EngineThread, membership: Membership,
    drain: Drain,
) -> None:  # fmt: skip
    logger.info("loading: node=%s model=%s", config.node_id, config.model)
    engine, loaded = await thread.run(functools.partial(load_drafter, config))
    drafting = Drafting(
        engine=engine,
        thread=thread,
        max_batch=config.slots,
        num_vocabulary=loaded.codec.num_tokens if loaded.codec else MAX_TOKEN,
    )

    def on_request(link: Link, message: DraftRequest | Release) -> None:
        drafting.on_request(message, link.send)

    counters = Counters()

    def on_lost(link: Link) -> None:
        counters.count("lost_links")
        _log_lost(link)
        if not peers.links:
            drafting.forget_all()

    def on_joined(link: Link) -> None:
        _log_joined(link)
        if drain.is_requested:
            link.send(Leave())

    peers = _peers(
        config, loaded, membership, on_request=on_request, on_joined=on_joined, on_lost=on_lost
    )
    presence: Presence | None = None

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
        presence = Presence(
            broker=broker, cluster=config.cluster, node_id=config.node_id, counters=counters
        )

        def state() -> NodeState:
            return drafter_state(loaded, drafting, peers, counters)

        presence.publish_presence("ready")
        loops |= {"presence": presence.run(), "state": publish_state(presence, state)}
    await _run_all(config.node_id, **loops)


async def _run_all(node_id: str, **loops: Coroutine[Any, Any, Any]) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for role, loop in loops.items():
                group.create_task(loop, name=f"{node_id}.{role}")
    except* EdgecosineError as errors:
        # One plain reason for the operator; the group has ended everything else.
        reason: BaseException = errors
        while isinstance(reason, BaseExceptionGroup):
            reason = reason.exceptions[0]
        raise reason from None


def _peers(
    config: NodeConfig,
    loaded: Loaded,
    membership: Membership,
    *,
    on_request: Callable[[Link, DraftRequest | Release], None],
    on_joined: Callable[[Link], None],
    on_lost: Callable[[Link], None],
) -> Peers:
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


def _drafters(peers: Peers) -> Mapping[str, DrafterLink]:
    """Who may be asked now, by node id."""
    return {node_id: link for node_id, link in peers.links.items() if not link.is_leaving}


def _refuse_work(link: Link, _: DraftRequest | Release) -> None:
    link.close("a target drafts for nobody")


def _log_joined(link: Link) -> None:
    peer = link.peer
    logger.info(
        "joined: peer=%s role=%s model=%s quantization=%s",
        peer.node_id, peer.role, peer.model, peer.quantization,
    )  # fmt: skip


def _log_lost(link: Link) -> None:
    logger.info("lost: peer=%s reason=%s", link.peer.node_id, link.closed.result())
