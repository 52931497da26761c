"""How a node belongs to its cluster: by credentials, or, without any, on this machine only.

It knows where links may go and keeps the credentials good. Where the cluster's authority lives it
serves that, too, so that one command on the target's machine is enough.
"""

from __future__ import annotations

import asyncio
import logging

from edgecosine.config import NodeConfig
from edgecosine.discovery.interfaces import interfaces
from edgecosine.discovery.mdns import Mdns
from edgecosine.discovery.peer import Address
from edgecosine.discovery.static import parse_address
from edgecosine.errors import ConfigError
from edgecosine.node.credentials.ca_server import CaServer
from edgecosine.node.credentials.renewal import CredentialRenewal
from edgecosine.node.links.link_policy import ADVICE, LinkPolicy, is_loopback
from edgecosine.node.links.peers import Discover
from edgecosine.security.authority import Authority
from edgecosine.security.credentials import Credentials
from edgecosine.security.identity import NodeIdentity

_LOOPBACK = "127.0.0.1"

logger = logging.getLogger(__name__)


class Membership:
    """What a node's settings mean for its links.

    guard     whom to link with
    listen    where links come in
    static    peers to dial
    discover  how to find others; None when that is switched off

    Raises ConfigError when links would go beyond this machine unprotected, and when the credentials
    are somebody else's.
    """

    def __init__(self, config: NodeConfig) -> None:
        self._credentials = _credentials_of(config)
        trust = self._credentials.trust() if self._credentials else None
        self.guard = LinkPolicy(trust, is_insecure=config.links.insecure)
        self._config = config
        self.listen = [self._listen_address()]
        self.static = [parse_address(peer) for peer in config.links.peers]
        for address in self.static:
            self.guard.check("peer", str(address), address.host)
        self.discover = self._discovery() if config.links.mdns else None

    def __repr__(self) -> str:
        return f"<Membership {self.guard!r}>"

    async def run(self) -> None:
        """Keep the credentials good, and serve the authority where it lives."""
        self._say_how()
        async with asyncio.TaskGroup() as group:
            if self._credentials is None:
                return
            if Authority.is_in(self._credentials.directory):
                endpoint = CaServer(Authority(self._credentials.directory))
                if await _is_opened(endpoint):
                    group.create_task(endpoint.run(), name="enrolment")
            group.create_task(CredentialRenewal(self._credentials, self.guard).run(), name="upkeep")

    def _listen_address(self) -> Address:
        listen = self._config.links.listen or (":0" if self.guard.may_use("") else f"{_LOOPBACK}:0")
        host, separator, port = listen.rpartition(":")
        if not separator or not port.isdecimal() or int(port) > 65535:
            allowed = "HOST:PORT, :PORT for all interfaces, port 0 for any"
            raise ConfigError("listen", listen, allowed)
        host = host.strip("[]")
        self.guard.check("listen", listen, host)
        return Address(host, int(port))

    def _discovery(self) -> Discover:
        if self.guard.may_use(""):
            return Mdns().run
        # Nobody beyond this machine is to be linked, so nobody there needs to hear of us.
        own = [address for one in interfaces() for address in one.addresses]
        return Mdns(interfaces=[address for address in own if is_loopback(address)]).run

    def _say_how(self) -> None:
        if self._credentials is not None:
            logger.info(
                "links are encrypted and authenticated: certificate_of=%s until=%s",
                self._credentials.identity.node_id, self._credentials.not_after,
            )  # fmt: skip
        elif self._config.links.insecure:
            logger.warning(
                "INSECURE, whoever reaches this node may link with it, read prompts and pose as "
                "any node: advice=%s", ADVICE,
            )  # fmt: skip
        else:
            logger.info("links stay on this machine: advice=to link with others %s", ADVICE)


def _credentials_of(config: NodeConfig) -> Credentials | None:
    if config.links.credentials is None:
        return None
    credentials = Credentials.load(config.links.credentials)
    ours = NodeIdentity(config.cluster, config.role, config.node_id)
    if credentials.identity != ours:
        theirs = credentials.identity
        raise ConfigError(
            "credentials", str(config.links.credentials),
            f"those of {ours.role} {ours.node_id} of cluster {ours.cluster}; these are of "
            f"{theirs.role} {theirs.node_id} of cluster {theirs.cluster}: join anew with a token "
            "for this role and --credentials DIR, or give --credentials none",
        )  # fmt: skip
    if config.links.insecure:
        raise ConfigError("insecure", True, "--credentials none beside it: there are credentials")
    return credentials


async def _is_opened(endpoint: CaServer) -> bool:
    """Whether the authority is ours to serve; `edgecosine cluster serve` may do it already."""
    try:
        await endpoint.open()
    except ConfigError as error:
        logger.warning("the authority is not served by this process: reason=%s", error)
        return False
    return True
