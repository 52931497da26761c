"""Opens the HTTP door that a node's settings ask for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edgecosine.config import NodeConfig
from edgecosine.discovery.peer import Address
from edgecosine.discovery.static import parse_listen
from edgecosine.errors import ConfigError, HttpNotInstalled
from edgecosine.node.links.link_policy import is_loopback
from edgecosine.node.links.listener import bind

if TYPE_CHECKING:
    from edgecosine.http.door import HttpDoor

logger = logging.getLogger(__name__)


async def open_door(config: NodeConfig) -> HttpDoor | None:
    """The node's HTTP door, bound to its address; None where the settings have none.

    Raises ConfigError when the address cannot be used, HttpNotInstalled.
    """
    if not config.http.listen:
        return None
    try:
        from edgecosine.http.door import HttpDoor  # packages of the extra `http`
    except ModuleNotFoundError as error:
        raise HttpNotInstalled(config.http.listen, error.name or "") from error
    address = parse_listen(config.http.listen, key="http")
    if not is_loopback(address.host):
        _check_exposure(config)
    door = HttpDoor(await bind(address, key="http"))
    logger.info("listening for HTTP: address=%s", Address(address.host, door.port))
    return door


def _check_exposure(config: NodeConfig) -> None:
    """Raises ConfigError where anybody on the network could send requests and read answers."""
    if not config.links.insecure:
        allowed = "an address of this machine, or, if you trust the whole network, --insecure"
        raise ConfigError("http", config.http.listen, allowed)
    logger.warning(
        "INSECURE, any machine on the network can send requests over HTTP, and read their answers "
        "on the way: http=%s", config.http.listen,
    )  # fmt: skip
