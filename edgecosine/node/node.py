"""The composition root: loads the engine, builds the actors, wires them, runs one TaskGroup."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from edgecosine.config import NodeConfig
from edgecosine.engine.base import DraftEngine, TargetEngine
from edgecosine.engine.model_files import NGRAM
from edgecosine.engine.ngram import load_ngram
from edgecosine.engine.options import Loaded, LoadOptions
from edgecosine.errors import BrokerLost, ConfigError, EdgecosineError
from edgecosine.node.balancer import Balancer
from edgecosine.node.broker_address import BrokerAddress
from edgecosine.node.client import Client
from edgecosine.node.consulting import DrafterLink
from edgecosine.node.drafting import MAX_TOKEN, Drafting
from edgecosine.node.engine_thread import EngineThread
from edgecosine.node.gateway import Gateway
from edgecosine.node.guard import is_loopback
from edgecosine.node.journal import DiskJournal
from edgecosine.node.link import Link, LinkSettings
from edgecosine.node.membership import Membership
from edgecosine.node.moments import Moment
from edgecosine.node.peers import Peers
from edgecosine.node.presence import Presence
from edgecosine.node.reception import model_of
from edgecosine.node.resume import NO_PAST, read_past
from edgecosine.node.serving import Serving
from edgecosine.node.state import drafter_state, target_state
from edgecosine.node.verifying import Verifying
from edgecosine.protocol.messages import PROTOCOL_VERSION, DraftRequest, Hello, Release
from edgecosine.protocol.request import NodeState
from edgecosine.protocol.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

STATE_PERIOD_S = 1.0

Result = TypeVar("Result")


async def run_node(config: NodeConfig) -> None:
    """Run one node until cancelled.

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
        # Others can be let in while the model is loading.
        await _run_all(
            config.node_id,
            membership=membership.run(),
            node=run(config, broker, thread, membership),
        )


def _broker_address(config: NodeConfig) -> BrokerAddress | None:
    if config.broker == "none":
        return None
    return BrokerAddress.parse(
        config.broker,
        username=config.broker_username,
        password=config.broker_password,
        ca_file=config.broker_ca,
        certificate_file=config.broker_certificate,
    )


async def _run_target(
    config: NodeConfig, broker: BrokerAddress | None, thread: EngineThread, membership: Membership
) -> None:
    assert broker is not None
    journal = DiskJournal(config.state_dir) if config.state_dir is not None else None
    await _refuse_second_target(config, broker)
    logger.info("loading: node=%s model=%s", config.node_id, config.model)
    engine, loaded = await thread.run(functools.partial(_load_target, config))
    assert loaded.codec is not None
    balancer = Balancer()
    verifying = Verifying(
        engine=engine,
        thread=thread,
        max_batch=config.max_sessions,
        observe_pass=balancer.observe_pass,
    )

    def on_joined(link: Link) -> None:
        _log_joined(link)
        balancer.welcome(link.peer.node_id)

    peers = _peers(
        config, loaded, membership,
        on_request=_refuse_work, on_joined=on_joined, on_lost=_log_lost,
    )  # fmt: skip
    serving = Serving(
        model=loaded.name,
        codec=loaded.codec,
        max_context=loaded.max_context,
        max_sessions=config.max_sessions,
        exactness=loaded.exactness,
        verifying=verifying,
        balancer=balancer,
        drafters=lambda: cast(Mapping[str, DrafterLink], peers.links),
    )
    past = read_past(journal, model_of(serving), Moment.now()) if journal else NO_PAST
    gateway = Gateway(
        serving,
        broker=broker,
        cluster=config.cluster,
        node_id=config.node_id,
        journal=journal,
        past=past,
        keep_answers_s=config.keep_answers,
    )
    presence = Presence(broker=broker, cluster=config.cluster, node_id=config.node_id)

    def state() -> NodeState:
        return target_state(loaded, serving, verifying, balancer, peers, journal)

    await _run_all(
        config.node_id,
        peers=peers.run(),
        verifying=verifying.run(),
        gateway=gateway.run(),
        presence=presence.run(),
        state=_publish_state(presence, state),
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
    config: NodeConfig, broker: BrokerAddress | None, thread: EngineThread, membership: Membership
) -> None:
    logger.info("loading: node=%s model=%s", config.node_id, config.model)
    engine, loaded = await thread.run(functools.partial(_load_drafter, config))
    drafting = Drafting(
        engine=engine,
        thread=thread,
        max_batch=config.slots,
        num_vocabulary=loaded.codec.num_tokens if loaded.codec else MAX_TOKEN,
    )

    def on_request(link: Link, message: DraftRequest | Release) -> None:
        drafting.on_request(message, link.send)

    def on_lost(link: Link) -> None:
        _log_lost(link)
        if not peers.links:
            drafting.forget_all()

    peers = _peers(
        config, loaded, membership, on_request=on_request, on_joined=_log_joined, on_lost=on_lost
    )
    loops = {"peers": peers.run(), "drafting": drafting.run()}
    if broker is not None:
        presence = Presence(broker=broker, cluster=config.cluster, node_id=config.node_id)

        def state() -> NodeState:
            return drafter_state(loaded, drafting, peers)

        loops |= {"presence": presence.run(), "state": _publish_state(presence, state)}
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


def _load_target(config: NodeConfig) -> tuple[TargetEngine, Loaded]:
    from edgecosine.engine.loading import load_target  # imports torch, which takes seconds

    return _pinned(load_target(_load_options(config)), config)


def _load_drafter(config: NodeConfig) -> tuple[DraftEngine, Loaded]:
    if config.model == NGRAM:
        return _pinned(load_ngram(), config)
    from edgecosine.engine.loading import load_drafter

    return _pinned(load_drafter(_load_options(config)), config)


def _pinned(loaded: Result, config: NodeConfig) -> Result:
    """Keep all threads of the process on the node's cores, now that loading is over."""
    if config.cores:
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), config.cores)
    return loaded


def _load_options(config: NodeConfig) -> LoadOptions:
    return LoadOptions(
        model=config.model,
        device=config.device,
        dtype=config.dtype,
        quantize=config.quantize,
        threads=config.threads or len(config.cores),
        slots=config.slots,
        context=config.context,
        ballast=config.ballast,
        tensor_parallel=config.tensor_parallel,
        exactness=config.exactness,
    )


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


async def _publish_state(presence: Presence, state: Callable[[], NodeState]) -> None:
    """Tell the node's state when it changes, looking once a period."""
    presence.publish_presence("ready")
    told: NodeState | None = None
    while True:
        now = state()
        if now != told:
            presence.publish_state(now)
            told = now
        await asyncio.sleep(STATE_PERIOD_S)
