"""The actor that keeps this node linked: the roster decides, this dials, listens and tells.

It owns the node's links. A link that ends is removed at once, whatever mDNS says. Two nodes may
dial each other at the same moment; the link dialled by the smaller node id survives, which both
compute alone. Of two links dialled by the same node that node closes the later one, because it
alone knows why it dialled twice; until then the other keeps it as a spare.
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
from edgecosine.errors import LinkError, LinkLost, PeerFlooded, PeerMismatched, PeerRefused
from edgecosine.node.links.link import Link, LinkSettings
from edgecosine.node.links.listener import Listener, connect
from edgecosine.node.links.peer_budget import MAX_JOINS, PeerBans

MAX_LINKS: Final = 256
MAX_SPARES: Final = 8
_MAX_DIALS: Final = 16
_FAREWELL_S: Final = 2.0

OnLink = Callable[[Link], None]
Discover = Callable[[Advert, Callable[[PeerSeen | PeerGone], None]], Coroutine[Any, Any, None]]
"""Announces this node and reports others until cancelled, such as `Mdns().run`."""

logger = logging.getLogger(__name__)


class Peers:
    """Links by node id, kept as the roster wants them.

    links  the links at work; a live view
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
        self._dials: dict[str, asyncio.Task[None]] = {}
        self._dial_slots = asyncio.Semaphore(_MAX_DIALS)
        self._known_slots = asyncio.Semaphore(_MAX_DIALS)
        self._group: asyncio.TaskGroup | None = None
        self._alarm: asyncio.TimerHandle | None = None
        settings.guard.on_change(self._review)

    def __repr__(self) -> str:
        return (
            f"<StartedPeers {len(self._links)} linked, {len(self._dials)} dials | {self._roster!r}>"
        )

    async def listening(self) -> tuple[Address, ...]:
        """Wait until the door is open; gives where."""
        await self._is_listening.wait()
        return self._listener.addresses

    def explain(self) -> list[Explanation]:
        """Every peer that was announced or named, and why it is not linked if it is not."""
        return self._roster.explain()

    async def run(self) -> None:
        """Listen, announce, dial and keep links until cancelled.

        Raises ConfigError when an address to listen on is not free.
        """
        try:
            await self._open()
            async with asyncio.TaskGroup() as group:
                await self._live(group)
        finally:
            await self._stop()

    async def _live(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._listener.serve(group)
        try:
            if self._discover is not None:
                hosts = [address.host for address in self._listener.addresses]
                told = [] if is_everywhere(hosts) else addresses_to_announce(hosts, ())
                advert = advert_of(self._ours, told, self._listener.port)
                self._start("discovery", self._discover(advert, self._take))
            self._take(Ticked())
            await asyncio.get_running_loop().create_future()
        finally:
            # a group that is shutting down takes no more tasks
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
            async with asyncio.timeout(_FAREWELL_S):
                for link in leaving:
                    await link.wait_closed()

    def _start(self, role: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        assert self._group is not None
        return self._group.create_task(work, name=f"{self._ours.node_id}.{role}")

    def _take(self, event: Event) -> None:
        """Let the roster decide on an event, and do what it says."""
        if self._group is None:
            return
        loop = asyncio.get_running_loop()
        for effect in self._roster.handle(event, loop.time()):
            self._do(effect)
        if self._alarm is not None:
            self._alarm.cancel()
        if self._roster.wake_at is not None:
            self._alarm = loop.call_at(self._roster.wake_at, self._take, Ticked())

    def _do(self, effect: RosterAction) -> None:
        match effect:
            case Dial(contact):
                replaced = self._dials.get(contact)
                if replaced is not None:
                    replaced.cancel()
                self._dials[contact] = self._start(f"dial-{contact}", self._dial(effect))
            case Explained(contact, reason, standing):
                level = {"left out": logging.DEBUG, "refused": logging.WARNING}
                logger.log(
                    level.get(standing, logging.INFO),
                    "not linked: peer=%s standing=%s reason=%s", contact, standing, reason,
                )  # fmt: skip
            case _:
                assert_never(effect)

    async def _dial(self, dial: Dial) -> None:
        try:
            # so that strangers, however many are announced, keep nobody waiting who is known
            async with self._known_slots if dial.is_known else self._dial_slots:
                outcome = await self._first_answer(dial)
        finally:
            if self._dials.get(dial.contact) is asyncio.current_task():
                del self._dials[dial.contact]
        if isinstance(outcome, Link):
            self._join(outcome, dial.contact)
        else:
            is_final = isinstance(outcome, PeerMismatched)
            self._take(DialFailed(dial.contact, str(outcome), is_final))

    async def _first_answer(self, dial: Dial) -> Link | LinkError:
        """The link to the first address that is the right node, or the most telling failure."""
        failure: LinkError = LinkLost("it has no address")
        for endpoint in dial.endpoints:
            try:
                link = await connect(endpoint, self._settings)
            except LinkError as error:
                if not isinstance(failure, PeerMismatched):
                    failure = error
                continue
            if dial.node_id in (None, link.peer.node_id):
                return link
            link.close(f"dialled {dial.node_id}, found {link.peer.node_id}")
            failure = LinkLost(f"{endpoint} is {link.peer.node_id}, not {dial.node_id}")
        return failure

    def _join(self, link: Link, contact: str | None = None) -> None:
        """Take a ready link, or decide which of two links to the same node survives."""
        current = self._links.get(link.peer.node_id)
        if not link.is_dialled and self._ban_of(link) is None and self._comes_too_often(link):
            self._ban(link, PeerFlooded(f"the peer came {MAX_JOINS} times in a minute"))
        # trust may have changed since its greeting
        objection = self._settings.guard.objection(link.peercert, link.peer)
        if objection := objection or self._ban_of(link):
            link.close(objection)
        if link.closed.done():
            if contact is not None:
                self._take(DialFailed(contact, str(link.closed.result())))
            return
        if current is None or current.closed.done() or self._outlives(link, current):
            self._admit(link, contact)
            return
        if contact is not None:
            life = current.peer.incarnation
            self._take(LinkUp(link.peer.node_id, life, contact))
        is_theirs_to_decide = not link.is_dialled and not current.is_dialled
        if link.peer.incarnation < current.peer.incarnation:
            self._name_copy(link, current)
            link.close("a later life of this node is linked: is its identity copied?")
        elif is_theirs_to_decide and len(self._spares) < MAX_SPARES:
            self._watch(link)
            self._spares.append(link)
        else:
            link.close("this node is linked already")
        logger.debug("one link too many: peer=%s link=%r", link.peer.node_id, link)

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
            current.close("another link to this node takes over")
            self._forget(current)
        elif len(self._links) >= MAX_LINKS:
            link.close(f"no room: {MAX_LINKS} peers are linked")
            if contact is not None:
                self._take(DialFailed(contact, "no room for another peer"))
            return
        self._links[node_id] = link
        if link in self._spares:
            self._spares.remove(link)
        else:
            self._watch(link)
        logger.info("joined: peer=%s role=%s rtt_ms=%.2f", node_id, link.peer.role,
                    1000 * link.rtt_s)  # fmt: skip
        self._take(LinkUp(node_id, link.peer.incarnation, contact))
        self._on_joined(link)

    def _review(self) -> None:
        """Part with those whom the guard trusts no more."""
        for link in [*self._links.values(), *self._spares]:
            doubt = self._settings.guard.doubt(link.peercert)
            if doubt is not None:
                link.close(doubt)

    def _name_copy(self, link: Link, current: Link) -> None:
        logger.warning(
            "two lives of one node: peer=%s later_from=%s earlier_from=%s advice=a process "
            "was left over, or the identity is copied: `edgecosine cluster revoke %s` revokes it",
            link.peer.node_id, current.host, link.host, link.peer.node_id,
        )  # fmt: skip

    def _watch(self, link: Link) -> None:
        link.closed.add_done_callback(lambda _: self._ended(link))

    def _ban_of(self, link: Link) -> str | None:
        """Why the peer is kept out, if it is for what it sent before."""
        return self._bans.objection(link.peer.node_id, asyncio.get_running_loop().time())

    def _comes_too_often(self, link: Link) -> bool:
        now = asyncio.get_running_loop().time()
        return not self._bans.may_come(link.peer.node_id, now)

    def _ban(self, link: Link, reason: PeerFlooded) -> None:
        """Part with a peer that floods this node, and keep it out for a while."""
        node_id, now = link.peer.node_id, asyncio.get_running_loop().time()
        seconds = self._bans.ban(node_id, str(reason), now)
        logger.warning("flooded: peer=%s from=%s kept_out_s=%.0f", node_id, link.host, seconds)
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
        self._take(LinkDown(node_id, reason, isinstance(ending, PeerRefused)))
