"""The actor that keeps this node linked: the roster decides which peers to dial, this class dials.

It owns the node's links. A link that ends is removed at once, even if mDNS still announces the
peer. When two nodes dial each other at the same moment, the link dialled by the smaller node id
survives. Of two links dialled by the same node, that node closes the later one, because only it
knows why it dialled twice; until then the other node keeps it as a spare.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, assert_never

from edgecosine.backoff import Backoff
from edgecosine.discovery.events import (
    Dial,
    DialFailed,
    Event,
    Explained,
    Explanation,
    LinkDown,
    LinkUp,
    PeerGone,
    PeerSeen,
    RosterAction,
    Ticked,
)
from edgecosine.discovery.interfaces import addresses_to_announce, is_everywhere
from edgecosine.discovery.peer import Address, Advert, advert_of
from edgecosine.discovery.roster import Roster
from edgecosine.errors import LinkError, PeerFlooded, PeerMismatched, PeerRefused
from edgecosine.node.links.dialler import Dialler
from edgecosine.node.links.link import Link, LinkSettings
from edgecosine.node.links.listener import Listener
from edgecosine.node.links.peer_budget import MAX_JOINS, PeerBans

MAX_LINKS: Final = 256
MAX_SPARES: Final = 8
_CLOSE_TIMEOUT_S: Final = 2.0

OnLink = Callable[[Link], None]
Discover = Callable[[Advert, Callable[[PeerSeen | PeerGone], None]], Coroutine[Any, Any, None]]
"""Announces this node and reports others until cancelled, for example `Mdns().run`."""

logger = logging.getLogger(__name__)


class Peers:
    """The links of a node.

    links  the active links by node id; a live view
    """

    def __init__(
        self,
        *,
        settings: LinkSettings,
        listen: Sequence[Address],
        on_joined: OnLink,
        on_lost: OnLink,
        static: Sequence[Address] = (),
        discover: Discover | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._settings, self._ours = settings, settings.hello
        self._listen, self._discover = tuple(listen), discover
        self._on_joined, self._on_lost = on_joined, on_lost
        self._roster = Roster(ours=settings.hello, static=static, backoff=backoff)
        self._links: dict[str, Link] = {}
        self.links: Mapping[str, Link] = MappingProxyType(self._links)
        self._spares: list[Link] = []
        self._bans = PeerBans()
        self._listener = Listener(settings, self._join)
        self._is_listening = asyncio.Event()
        self._dialler = Dialler(settings)
        self._group: asyncio.TaskGroup | None = None
        self._alarm: asyncio.TimerHandle | None = None
        settings.guard.on_change(self._review)

    def __repr__(self) -> str:
        return f"<Peers {len(self._links)} linked, {len(self._dialler)} dials | {self._roster!r}>"

    async def listening(self) -> tuple[Address, ...]:
        """Wait until the node listens; returns its addresses."""
        await self._is_listening.wait()
        return self._listener.addresses

    def explain(self) -> list[Explanation]:
        """Every announced or configured peer, with the reason if it is not linked."""
        return self._roster.explain()

    async def run(self) -> None:
        """Listen, announce, dial and maintain links until cancelled.

        Raises ConfigError when an address to listen on is in use.
        """
        try:
            await self._open()
            async with asyncio.TaskGroup() as group:
                await self._serve(group)
        finally:
            await self._stop()

    async def _serve(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._listener.serve(group)
        try:
            if self._discover is not None:
                hosts = [address.host for address in self._listener.addresses]
                announced = [] if is_everywhere(hosts) else addresses_to_announce(hosts, ())
                advert = advert_of(self._ours, announced, self._listener.port)
                self._start("discovery", self._discover(advert, self._handle))
            self._handle(Ticked())
            await asyncio.get_running_loop().create_future()
        finally:
            # A group that is shutting down accepts no more tasks.
            self._group = None

    async def _open(self) -> None:
        for address in self._listen:
            port = address.port or (self._listener.port if self._listener.addresses else 0)
            await self._listener.open(Address(address.host, port))
        self._is_listening.set()
        where = ", ".join(map(str, self._listener.addresses))
        logger.info("listening: node=%s addresses=%s", self._ours.node_id, where)

    async def _stop(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._listener.close()
        leaving = [*self._links.values(), *self._spares]
        for link in leaving:
            link.close("this node is stopping")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                for link in leaving:
                    await link.wait_closed()

    def _start(self, role: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        assert self._group is not None
        return self._group.create_task(work, name=f"{self._ours.node_id}.{role}")

    def _handle(self, event: Event) -> None:
        """Pass an event to the roster and carry out its actions."""
        if self._group is None:
            return
        loop = asyncio.get_running_loop()
        for action in self._roster.handle(event, loop.time()):
            self._carry_out(action)
        if self._alarm is not None:
            self._alarm.cancel()
        if self._roster.wake_at is not None:
            self._alarm = loop.call_at(self._roster.wake_at, self._handle, Ticked())

    def _carry_out(self, action: RosterAction) -> None:
        match action:
            case Dial():
                self._dialler.dial(action, self._start, self._on_dialled)
            case Explained(contact, reason, state):
                level = {"left out": logging.DEBUG, "refused": logging.WARNING}
                logger.log(
                    level.get(state, logging.INFO),
                    "not linked: peer=%s state=%s reason=%s", contact, state, reason,
                )  # fmt: skip
            case _:
                assert_never(action)

    def _on_dialled(self, dial: Dial, outcome: Link | LinkError) -> None:
        if isinstance(outcome, Link):
            self._join(outcome, dial.contact)
        else:
            is_final = isinstance(outcome, PeerMismatched)
            self._handle(DialFailed(dial.contact, str(outcome), is_final))

    def _join(self, link: Link, contact: str | None = None) -> None:
        """Add a ready link, or decide which of two links to the same node survives."""
        current = self._links.get(link.peer.node_id)
        if not link.is_dialled and self._ban_of(link) is None and self._joins_too_often(link):
            self._ban(link, PeerFlooded(f"the peer linked {MAX_JOINS} times in a minute"))
        # The trust list may have changed since the handshake.
        objection = self._settings.guard.objection(link.peercert, link.peer)
        if objection := objection or self._ban_of(link):
            link.close(objection)
        if link.closed.done():
            if contact is not None:
                self._handle(DialFailed(contact, str(link.closed.result())))
            return
        if current is None or current.closed.done() or self._outlives(link, current):
            self._admit(link, contact)
            return
        if contact is not None:
            incarnation = current.peer.incarnation
            self._handle(LinkUp(link.peer.node_id, incarnation, contact))
        is_peers_choice = not link.is_dialled and not current.is_dialled
        if link.peer.incarnation < current.peer.incarnation:
            self._warn_of_copy(link, current)
            link.close("a later process of this node is linked: is its identity copied?")
        elif is_peers_choice and len(self._spares) < MAX_SPARES:
            self._watch(link)
            self._spares.append(link)
        else:
            link.close("this node is linked already")
        logger.debug("redundant link: peer=%s link=%r", link.peer.node_id, link)

    def _outlives(self, link: Link, current: Link) -> bool:
        ours, theirs = link.peer.incarnation, current.peer.incarnation
        if ours != theirs:
            return ours > theirs
        if link.is_dialled == current.is_dialled:
            return False
        is_ours_smaller = self._ours.node_id < link.peer.node_id
        return link.is_dialled == is_ours_smaller

    def _admit(self, link: Link, contact: str | None) -> None:
        node_id = link.peer.node_id
        current = self._links.get(node_id)
        if current is not None:
            current.close("replaced by another link to this node")
            self._forget(current)
        elif len(self._links) >= MAX_LINKS:
            link.close(f"no room: {MAX_LINKS} peers are linked")
            if contact is not None:
                self._handle(DialFailed(contact, "no room for another peer"))
            return
        self._links[node_id] = link
        if link in self._spares:
            self._spares.remove(link)
        else:
            self._watch(link)
        peer = link.peer
        logger.info(
            "joined: peer=%s role=%s model=%s quantization=%s context=%s rtt_ms=%.2f",
            node_id, peer.role, peer.model, peer.quantization, peer.max_context or "any",
            1000 * link.rtt_s,
        )  # fmt: skip
        self._handle(LinkUp(node_id, link.peer.incarnation, contact))
        self._on_joined(link)

    def _review(self) -> None:
        """Close the links to peers that are no longer trusted."""
        for link in [*self._links.values(), *self._spares]:
            doubt = self._settings.guard.doubt(link.peercert)
            if doubt is not None:
                link.close(doubt)

    def _warn_of_copy(self, link: Link, current: Link) -> None:
        logger.warning(
            "two processes of one node: peer=%s later_from=%s earlier_from=%s advice=end the older "
            "process, or, if the identity was copied, run `edgecosine cluster revoke %s`",
            link.peer.node_id, current.host, link.host, link.peer.node_id,
        )  # fmt: skip

    def _watch(self, link: Link) -> None:
        link.closed.add_done_callback(lambda _: self._ended(link))

    def _ban_of(self, link: Link) -> str | None:
        """Why the peer is banned for flooding; None if it is not."""
        return self._bans.objection(link.peer.node_id, asyncio.get_running_loop().time())

    def _joins_too_often(self, link: Link) -> bool:
        now = asyncio.get_running_loop().time()
        return not self._bans.may_join(link.peer.node_id, now)

    def _ban(self, link: Link, reason: PeerFlooded) -> None:
        """Close all links to a peer that floods this node, and ban it for some time."""
        node_id, now = link.peer.node_id, asyncio.get_running_loop().time()
        seconds = self._bans.ban(node_id, str(reason), now)
        logger.warning("flooded: peer=%s from=%s banned_s=%.0f", node_id, link.host, seconds)
        for other in [*self._links.values(), *self._spares]:
            if other.peer.node_id == node_id:
                other.abort(reason)

    def _ended(self, link: Link) -> None:
        if link in self._spares:
            self._spares.remove(link)
        node_id, reason = link.peer.node_id, link.closed.result()
        if isinstance(reason, PeerFlooded) and self._ban_of(link) is None:
            self._ban(link, reason)
        if self._links.get(node_id) is not link:
            return
        self._forget(link)
        for spare in self._spares:
            if spare.peer.node_id == node_id and not spare.closed.done():
                self._admit(spare, None)
                return

    def _forget(self, link: Link) -> None:
        node_id, ending = link.peer.node_id, link.closed.result()
        reason = str(ending)
        del self._links[node_id]
        logger.info("lost: peer=%s reason=%s", node_id, reason)
        self._on_lost(link)
        self._handle(LinkDown(node_id, reason, isinstance(ending, PeerRefused)))
