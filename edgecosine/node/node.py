"""One node, whatever its role: wrong settings are refused, then its loops run."""

from __future__ import annotations

import logging

from edgecosine.config import NodeConfig
from edgecosine.errors import ConfigError
from edgecosine.models import NGRAM
from edgecosine.models.packages import require_packages
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.node.common import run_all
from edgecosine.node.credentials.membership import Membership
from edgecosine.node.drafter_node import run_drafter
from edgecosine.node.links.link_policy import is_loopback
from edgecosine.node.runtime.drain import Drain, Drained
from edgecosine.node.runtime.engine_thread import EngineThread
from edgecosine.node.target_node import run_target

logger = logging.getLogger(__name__)


async def run_node(config: NodeConfig, drain: Drain | None = None) -> None:
    """Run one node until cancelled, or until it has finished its work after `drain.request()`.

    Raises EngineError when the model cannot be served, ConfigError when a setting is wrong.
    """
    broker = _broker_address(config)
    if broker is None and config.role == "target":
        raise ConfigError("broker", config.broker, "an MQTT URL: requests come from there")
    # What is wrong is refused before anything is loaded.
    if config.model != NGRAM:
        require_packages(config.model)
    membership = Membership(config)
    if broker is not None and not broker.is_encrypted and not is_loopback(broker.host):
        logger.warning(
            "UNENCRYPTED, prompts and answers cross the network in plain, which mqtts:// prevents: "
            "broker=%s", broker,
        )  # fmt: skip
    with EngineThread(f"{config.node_id}.engine") as thread:
        run = run_target if config.role == "target" else run_drafter
        drain = drain or Drain(config.drain_timeout_s)
        try:
            # Others can be let in while the model is loading.
            await run_all(
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
