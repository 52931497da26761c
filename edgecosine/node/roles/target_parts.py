"""The parts of a target that follow from its settings, its engine and each other."""

from __future__ import annotations

import functools

from edgecosine.balance.planner import Planner
from edgecosine.client.client import Client
from edgecosine.config import NodeConfig
from edgecosine.engine.base import MemberEngine
from edgecosine.engine.options import Loaded
from edgecosine.engine.target.pass_table import pass_table
from edgecosine.fusion.ngram_file import read_ngrams
from edgecosine.http.cluster_events import ClusterEvents
from edgecosine.metrics.history import History
from edgecosine.metrics.measurements import Measurements
from edgecosine.models.catalogue import packaged_ngrams
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.node.member.member_worker import MemberWorker
from edgecosine.node.roles.committee_links import CommitteeLinks
from edgecosine.node.runtime.engine_thread import EngineThread
from edgecosine.node.target.committee_verifier import CommitteeVerifier, NoEngine
from edgecosine.node.target.verifier import Verifier


def new_planner(config: NodeConfig) -> Planner:
    """The planner, which knows the n-grams that are packaged with the model, if there are any."""
    ngrams = packaged_ngrams(config.engine.model)
    return Planner(ngrams=read_ngrams(ngrams) if ngrams else None)


def new_member_worker(
    config: NodeConfig, engine: MemberEngine | None, loaded: Loaded, thread: EngineThread
) -> MemberWorker | None:
    """The worker of the committee's member on this node; None without a committee or engine."""
    if engine is None or not config.committee.committee:
        return None
    return MemberWorker(
        engine=engine,
        thread=thread,
        max_batch=config.max_sessions,
        num_vocabulary=loaded.num_rows,
    )


def new_verifier(
    config: NodeConfig,
    engine: MemberEngine | None,
    loaded: Loaded,
    thread: EngineThread,
    planner: Planner,
    links: CommitteeLinks | None,
) -> Verifier:
    """The verifier of the engine, or of the committee if there is one."""
    make = (
        Verifier
        if links is None
        else functools.partial(CommitteeVerifier, committee=links.committee)
    )
    return make(
        engine=engine or NoEngine(), thread=thread, max_batch=config.max_sessions,
        costs=planner.statistics,
        table=pass_table(config.engine, loaded, str(sorted(config.cores))),
    )  # fmt: skip


def new_cluster_events(
    config: NodeConfig, broker: BrokerAddress, measurements: Measurements
) -> ClusterEvents:
    """The cluster's events for the page, which a client of the broker collects."""
    return ClusterEvents(
        lambda: Client(broker, config.cluster),
        cluster=config.cluster,
        node_id=config.node_id,
        history=History(measurements),
    )
