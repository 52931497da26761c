"""A node's membership of its cluster: by credentials, or, without any, on this machine only.

It determines which links are allowed and keeps the credentials valid. On the authority's machine it
also serves the authority, so that one command there is enough.
"""

from __future__ import annotations

import asyncio
import logging

from edgecosine.config import NodeConfig
from edgecosine.discovery.interfaces import interfaces
from edgecosine.discovery.mdns import Mdns
from edgecosine.discovery.peer import Address
from edgecosine.discovery.static import parse_address, parse_listen
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
    """The link policy that follows from a node's settings.

    guard     which peers to link with
    listen    addresses to listen on
    static    addresses of peers to dial
    discover  discovery by multicast; None when it is switched off

    Raises ConfigError when links beyond this machine would be unencrypted, and when the credentials
    belong to another node.
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
        """Renew the credentials, and serve the authority if it is on this machine."""
        self._log_policy()
        async with asyncio.TaskGroup() as group:
            if self._credentials is None:
                return
            if Authority.is_in(self._credentials.directory):
                server = CaServer(Authority(self._credentials.directory))
                if await _opened(server):
                    group.create_task(server.run(), name="enrolment")
            group.create_task(
                CredentialRenewal(self._credentials, self.guard).run(), name="renewal"
            )

    def _listen_address(self) -> Address:
        listen = self._config.links.listen or (":0" if self.guard.may_use("") else f"{_LOOPBACK}:0")
        address = parse_listen(listen, key="listen")
        self.guard.check("listen", listen, address.host)
        return address

    def _discovery(self) -> Discover:
        if self.guard.may_use(""):
            return Mdns().run
        # Links are limited to this machine, so announcements are, too.
        own = [address for one in interfaces() for address in one.addresses]
        return Mdns(interfaces=[address for address in own if is_loopback(address)]).run

    def _log_policy(self) -> None:
        if self._credentials is not None:
            logger.info(
                "links are encrypted and authenticated: certificate_of=%s until=%s",
                self._credentials.identity.node_id, self._credentials.not_after,
            )  # fmt: skip
        elif self._config.links.insecure:
            logger.warning(
                "INSECURE, any machine on the network can link with this node, read prompts and "
                "pose as any node: advice=%s", ADVICE,
            )  # fmt: skip
        else:
            logger.info("links are limited to this machine: advice=to link with others %s", ADVICE)


def _credentials_of(config: NodeConfig) -> Credentials | None:
    if config.links.credentials is None:
        return None
    credentials = Credentials.load(config.links.credentials)
    ours = NodeIdentity(config.cluster, config.link_role, config.node_id)
    if credentials.identity != ours:
        theirs = credentials.identity
        raise ConfigError(
            "credentials", str(config.links.credentials),
            f"those of {ours.role} {ours.node_id} of cluster {ours.cluster}; these belong to "
            f"{theirs.role} {theirs.node_id} of cluster {theirs.cluster}: join again with a token "
            "for this role and --credentials DIR, or give --credentials none",
        )  # fmt: skip
    if config.links.insecure:
        raise ConfigError("insecure", True, "--credentials none with it: there are credentials")
    return credentials


async def _opened(server: CaServer) -> bool:
    """Open the server; False if its address is in use, as by `edgecosine cluster serve`."""
    try:
        await server.open()
    except ConfigError as error:
        logger.warning("this process does not serve the authority: reason=%s", error)
        return False
    return True
