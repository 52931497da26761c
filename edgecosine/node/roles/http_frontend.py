"""Opens the HTTP frontend that a node's settings ask for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edgecosine.config import NodeConfig
from edgecosine.discovery.peer import Address
from edgecosine.discovery.static import parse_listen
from edgecosine.errors import ConfigError, HttpNotInstalled
from edgecosine.node.links.link_policy import is_loopback
from edgecosine.node.links.listener import bind
from edgecosine.security.api_keys import ApiKeys
from edgecosine.security.trust import https_context

if TYPE_CHECKING:
    from edgecosine.http.frontend import HttpFrontend

logger = logging.getLogger(__name__)


async def open_frontend(config: NodeConfig) -> HttpFrontend | None:
    """The node's HTTP frontend, bound to its address; None where the settings have none.

    Raises ConfigError when the address cannot be used, HttpNotInstalled.
    """
    if not config.http.listen:
        return None
    try:
        from edgecosine.http.frontend import HttpFrontend  # packages of the extra `http`
    except ModuleNotFoundError as error:
        raise HttpNotInstalled(config.http.listen, error.name or "") from error
    address, options = parse_listen(config.http.listen, key="http"), config.http
    keys = None if options.keys is None else ApiKeys(options.keys)
    tls = None if options.certificate is None else https_context(options.certificate)
    if not is_loopback(address.host):
        _check_exposure(config, has_keys=bool(keys), has_tls=tls is not None)
    sockets = await bind(address, key="http")
    frontend = HttpFrontend(sockets, keys=keys, origins=options.cors, tls=tls)
    logger.info(
        "listening for HTTP: address=%s tls=%s keys=%d", Address(address.host, frontend.port),
        "on" if tls else "off", len(keys or ()),
    )  # fmt: skip
    return frontend


def _check_exposure(config: NodeConfig, *, has_keys: bool, has_tls: bool) -> None:
    """Raises ConfigError where anybody on the network could send requests."""
    if not has_keys and not config.links.insecure:
        allowed = (
            "an address of this machine, or keys by `edgecosine key create NAME`, or, if you trust "
            "the whole network, --insecure"
        )
        raise ConfigError("http", config.http.listen, allowed)
    if not has_keys:
        logger.warning(
            "INSECURE, any machine on the network can send requests: http=%s", config.http.listen
        )
    if not has_tls:
        logger.warning(
            "UNENCRYPTED, prompts, answers and keys cross the network in plain text; give "
            "--http-certificate: http=%s", config.http.listen,
        )  # fmt: skip
