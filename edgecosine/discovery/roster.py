"""Decides which peers to dial and explains why others are not linked. Pure: events in, actions out.

mDNS is trusted for the existence of nodes only; links show which nodes are alive. Every peer that
is announced but not linked has a reason.

A compatible peer without a link is dialled, with back-off. An incompatible one waits for a new
advert. Static peers are dialled without end. Of two processes of a node the newer one counts,
unless its advert is stale. No announcement ends a link or replaces a proven address.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, assert_never

from edgecosine.backoff import Backoff
from edgecosine.discovery.contact import Contact, mismatch_of
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
    PeerState,
    RosterAction,
    Ticked,
)
from edgecosine.discovery.peer import Address, Advert
from edgecosine.protocol.wire.messages import Hello

MAX_PEERS: Final = 1024
STABLE_S: Final = 5.0
"""A link that lasted this long resets the back-off."""
STALE_LIFE_S: Final = 30.0
"""Seconds after which an older incarnation counts: the node's clock may have gone back."""


@dataclass(slots=True)
class _Linked:
    incarnation: int
    since: float


class Roster:
    """The known peers and links; `handle` is the only method that changes them."""

    def __init__(
        self,
        *,
        ours: Hello,
        static: Iterable[Address] = (),
        dials_seen: bool | None = None,
        backoff: Backoff | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._ours = ours
        self._dials_seen = ours.role == "target" if dials_seen is None else dials_seen
        self._backoff, self._chance = backoff or Backoff(), chance
        self._linked: dict[str, _Linked] = {}
        self._explained: dict[str, str] = {}
        self._contacts = {str(address): Contact(str(address), (address,)) for address in static}

    def __repr__(self) -> str:
        return f"<Roster {len(self._contacts)} contacts, {len(self._linked)} linked>"

    @property
    def wake_at(self) -> float | None:
        """Time of the next dial; None when only an event can cause one."""
        due = [c.dial_at for c in self._contacts.values() if c.state == "waiting"]
        return min(due, default=None)

    def explain(self) -> list[Explanation]:
        """The state of every known peer."""
        return [
            Explanation(
                c.key,
                c.state,
                c.reason,
                c.endpoints,
                is_foreign=c.advert is not None and c.advert.cluster != self._ours.cluster,
            )
            for c in self._contacts.values()
        ]

    def handle(self, event: Event, now: float) -> list[RosterAction]:
        """Handle an event at `now` (seconds of any monotonic clock); returns the actions."""
        effects: list[RosterAction] = []
        match event:
            case PeerSeen(advert):
                effects += self._see(advert, now)
            case PeerGone(node_id):
                self._leave(node_id)
            case LinkUp(node_id, incarnation, key):
                self._link_up(node_id, incarnation, key, now)
            case LinkDown(node_id, reason, is_disconnect):
                self._link_down(node_id, reason, now, is_disconnect=is_disconnect)
            case DialFailed(key, reason, is_final):
                self._dial_failed(key, reason, is_final, now)
            case Ticked():
                pass
            case _:
                assert_never(event)
        return effects + self._dial_due(now) + self._explain_anew()

    def _see(self, advert: Advert, now: float) -> list[RosterAction]:
        if advert.node_id == self._ours.node_id:
            if advert.incarnation <= self._ours.incarnation:
                return []
            reason = "another node announces our name: give each node its own"
            return self._explain_once(advert.node_id, reason, "refused")
        known = self._contacts.get(advert.node_id)
        if known is None and not self._has_room():
            reason = f"more than {MAX_PEERS} peers are announced"
            return self._explain_once("other peers", reason, "left out")
        if known is not None and self._has_nothing_new(known, advert, now):
            return []
        contact = Contact(advert.node_id, advert.endpoints, advert, advert.node_id)
        contact.seen_at = contact.dial_at = now
        if known is not None:
            contact.also_at(known.endpoints)
            contact.proven, contact.dialled_at = known.proven, known.dialled_at
            contact.dial_at = max(now, known.dialled_at + self._backoff.first_s)
        self._contacts[advert.node_id] = contact
        self._judge(contact)
        if self._has_own_link(contact):
            contact.state, contact.reason = "linked", ""
        return []

    def _has_room(self) -> bool:
        """Whether one more peer can be stored; a peer whose dials failed is dropped for it."""
        if len(self._contacts) < MAX_PEERS:
            return True
        spare = next((c for c in self._contacts.values() if self._is_spare(c)), None)
        if spare is not None:
            self._forget(spare)
        return spare is not None

    def _is_spare(self, contact: Contact) -> bool:
        return contact.is_spare and not self._is_linked(contact)

    def _has_nothing_new(self, known: Contact, advert: Advert, now: float) -> bool:
        """Whether an advert adds at most new endpoints."""
        if known.advert is None:
            return False
        if known.advert == advert:
            known.seen_at, known.has_left = now, False
            return True
        was_fit, is_fit = (self._mismatch(each) is None for each in (known.advert, advert))
        is_less = (is_fit, advert.incarnation) < (was_fit, known.advert.incarnation)
        is_settled = known.is_known or self._is_linked(known)
        if is_less and (is_settled or now - known.seen_at < STALE_LIFE_S):
            if is_fit:
                known.also_at(advert.endpoints)
            return True
        return False

    def _mismatch(self, advert: Advert) -> tuple[PeerState, str] | None:
        return mismatch_of(self._ours, advert, dials_seen=self._dials_seen)

    def _judge(self, contact: Contact) -> None:
        """Set the contact's state if its advert rules out a dial."""
        mismatch = None if contact.advert is None else self._mismatch(contact.advert)
        if mismatch is not None:
            contact.state, contact.reason = mismatch

    def _leave(self, node_id: str) -> None:
        known = self._contacts.get(node_id)
        if known is None or known.advert is None:
            return
        if self._is_linked(known):
            known.has_left = True
        else:
            self._forget(known)

    def _forget(self, contact: Contact) -> None:
        del self._contacts[contact.key]
        self._explained.pop(contact.key, None)

    def _link_up(self, node_id: str, incarnation: int, key: str | None, now: float) -> None:
        self._linked[node_id] = _Linked(incarnation, now)
        dialled = self._contacts.get(key) if key is not None else None
        if dialled is not None:
            dialled.node_id = node_id
            dialled.prove()
        for contact in self._of(node_id):
            contact.state, contact.reason = "linked", ""
            self._explained.pop(contact.key, None)

    def _link_down(self, node_id: str, reason: str, now: float, *, is_disconnect: bool) -> None:
        linked = self._linked.pop(node_id, None)
        was_stable = linked is not None and now - linked.since >= STABLE_S
        for contact in self._of(node_id):
            if contact.state != "linked":
                continue
            if contact.has_left and is_disconnect:
                self._forget(contact)
                continue
            if self._has_own_link(contact):
                contact.node_id = contact.key  # another node answered at its address
                continue
            if was_stable:
                contact.attempts = 0
            self._wait(contact, reason, now)
            self._judge(contact)

    def _has_own_link(self, contact: Contact) -> bool:
        """Whether the process that the contact's advert names, or a later one, is linked."""
        linked = self._linked.get(contact.key)
        return (
            linked is not None
            and contact.advert is not None
            and linked.incarnation >= contact.advert.incarnation
        )

    def _dial_failed(self, key: str, reason: str, is_final: bool, now: float) -> None:
        contact = self._contacts.get(key)
        if contact is None or contact.state != "dialling":
            return
        if contact.advert is not None and self._is_linked(contact):
            contact.state, contact.reason = "linked", ""  # the advert of another process was false
            return
        self._wait(contact, reason, now)
        if contact.is_given_up:
            self._forget(contact)
        elif is_final and contact.advert is not None:
            contact.state = "refused"

    def _wait(self, contact: Contact, reason: str, now: float) -> None:
        contact.attempts += 1
        contact.state, contact.reason = "waiting", reason
        contact.dial_at = now + self._backoff.delay_s(contact.attempts, self._chance())

    def _dial_due(self, now: float) -> list[RosterAction]:
        due = [c for c in self._contacts.values() if c.state == "waiting" and c.dial_at <= now]
        for contact in due:
            contact.state, contact.dialled_at = "dialling", now
        return [self._dial(contact) for contact in due]

    def _dial(self, contact: Contact) -> Dial:
        where = contact.where(is_linked=self._is_linked(contact))
        wanted = contact.node_id if contact.advert is not None else None
        return Dial(contact.key, where, wanted, contact.is_known)

    def _explain_anew(self) -> list[RosterAction]:
        effects: list[RosterAction] = []
        for contact in self._contacts.values():
            has_failed = contact.state == "waiting" and contact.attempts > 0
            if has_failed or contact.state in ("refused", "left out"):
                effects += self._explain_once(contact.key, contact.reason, contact.state)
        return effects

    def _explain_once(self, key: str, reason: str, state: PeerState) -> list[RosterAction]:
        if self._explained.get(key) == reason:
            return []
        self._explained[key] = reason
        return [Explained(key, reason, state)]

    def _of(self, node_id: str) -> list[Contact]:
        return [c for c in self._contacts.values() if node_id in (c.node_id, c.key)]

    def _is_linked(self, contact: Contact) -> bool:
        return contact.node_id in self._linked
