"""Runs one node of any role, after its settings have been checked."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from edgecosine.config import NodeConfig
from edgecosine.models import NGRAM
from edgecosine.models.packages import require_packages
from edgecosine.node.credentials.membership import Membership
from edgecosine.node.links.link_policy import is_loopback
from edgecosine.node.roles.common import run_all
from edgecosine.node.roles.gateway_node import run_gateway
from edgecosine.node.roles.target_node import run_target
from edgecosine.node.roles.worker_node import LoadDrafter, run_drafter, run_member
from edgecosine.node.runtime.drain import Drain, Drained
from edgecosine.node.runtime.engine_thread import EngineThread
from edgecosine.node.runtime.load_engine import load_drafter
from edgecosine.protocol.wire.messages import Role

logger = logging.getLogger(__name__)


async def run_node(
    config: NodeConfig, drain: Drain | None = None, *, load: LoadDrafter = load_drafter
) -> None:
    """Run one node until cancelled, or until it has finished its work after `drain.request()`. A
    drafter's engine is loaded by `load`.

    Raises EngineError when the model cannot be served, ConfigError when a setting is wrong.
    """
    broker, drain = config.broker, drain or Drain(config.drain_timeout_s)
    # Wrong settings are refused before a model is loaded.
    if config.engine.model not in ("", NGRAM):
        require_packages(config.engine.model)
    if broker is not None and not broker.is_encrypted and not is_loopback(broker.host):
        logger.warning(
            "UNENCRYPTED, prompts and answers cross the network in plain text; use mqtts://: "
            "broker=%s", broker,
        )  # fmt: skip
    run = run_gateway if config.role == "gateway" else functools.partial(_run_with_engine, load)
    try:
        await run_all(config.node_id, node=run(config, drain), drain=drain.run())
    except Drained as reason:
        logger.info("drained: node=%s reason=%s", config.node_id, reason)


async def _run_with_engine(load: LoadDrafter, config: NodeConfig, drain: Drain) -> None:
    runs: Mapping[Role, Callable[..., Coroutine[Any, Any, None]]] = {
        "target": run_target,
        "drafter": functools.partial(run_drafter, load),
        "member": run_member,
    }
    membership = Membership(config)
    with EngineThread(f"{config.node_id}.engine") as thread:
        # Other nodes can enrol while the model is loading.
        await run_all(
            config.node_id,
            membership=membership.run(),
            node=runs[config.link_role](config, thread, membership, drain),
        )
