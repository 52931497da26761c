"""Who of the targets has which request: the rules by which several of them share one queue.

Every target hears every request. The chosen one claims it and starts it once the others consent;
the others keep what they heard until it is claimed, and what is claimed until it is done. When a
target is gone, its claims are taken by whom the same choice names among those that are left.

Pure: what happens comes in by calls with the time, in seconds of any steady clock, and what is to
be done goes out as effects. Every two claims to one request are ordered in the same way by all who
see them, so of two claimants exactly one gives up.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from edgecosine.balance.rendezvous import chosen, weight
from edgecosine.node.effects import Agree, Clear, Effect, GiveUp, Inform, Start, Tell
from edgecosine.node.hearsay import Hearsay
from edgecosine.protocol.intake import Ticket
from edgecosine.protocol.sharing import Claim, Standing, StandingState

GRACE_S: Final = 5.0
"""In which a target that was lost may come back to its work; as long as couriers pause at most."""
CONSENT_S: Final = 0.5
"""How long a claim waits for another target, which is not waited for again until it speaks."""
UNCLAIMED_S: Final = 2.0
"""After so long a request that nobody claims is taken by whoever has heard it."""
_FORGET_S: Final = 3600.0
_MAX_HEARD: Final = 1024
_MAX_THEIRS: Final = 4096
_MAX_DONE: Final = 16384

V = TypeVar("V")


@dataclass(slots=True)
class _Work:
    """A request of ours. `waiting` are the targets whose consent is missing, `until` when."""

    claim: Claim
    waiting: set[str]
    until: float
    is_started: bool = False
    is_told: bool = False


@dataclass(slots=True)
class _Peer:
    """Another target, in this life since `since`; `lost_at` is when it was lost."""

    standing: Standing
    since: float
    lost_at: float | None = None
    is_silent: bool = False


class WorkBook:
    """One target's book. `knows` tells whether a request was answered here."""

    def __init__(self, us: Standing, *, knows: Callable[[str], bool]) -> None:
        self.us = us
        self.peers: dict[str, _Peer] = {}
        self.is_joined = False
        """Whether all that the broker holds has been heard in this connection."""
        self.has_joined = False
        self._knows = knows
        self._mine: dict[str, _Work] = {}
        self._theirs: OrderedDict[str, Claim] = OrderedDict()
        self._heard = Hearsay(_MAX_HEARD)
        self._settled: OrderedDict[str, tuple[str, float]] = OrderedDict()
        """Requests that others have done, by whom and when."""
        self._done: OrderedDict[str, None] = OrderedDict()
        """Keys of what was answered here, of more than answers are kept."""
        self._owed: dict[str, bool] = {}
        """Answers of our former life, and whether they are still ours to give."""
        self._strangers: dict[str, float] = {}
        """Since when there are claims of targets that never said how they stand."""
        self._heard_again: set[str] | None = None

    def __repr__(self) -> str:
        return (
            f"<WorkBook {self.us.node} [{len(self._mine)} ours, {len(self._theirs)} of others, "
            f"{len(self._heard)} heard]>"
        )

    @property
    def others(self) -> list[str]:
        """The targets that are there beside us."""
        return [node for node, peer in self.peers.items() if peer.lost_at is None]

    @property
    def has_stand_in(self) -> bool:
        """Whether another target takes new requests."""
        return any(self.peers[node].standing.state == "ready" for node in self.others)

    def is_ours(self, key: str) -> bool:
        """Whether a request is ours as far as can be known: all others agree."""
        if key in self._owed:
            return self._owed[key]
        work = self._mine.get(key)
        if not self.peers:
            return self.has_joined
        return self.is_joined and work is not None and work.is_started and not work.waiting

    def is_another(self, ticket: Ticket) -> bool:
        """Whether we have a request of that name with another body."""
        work = self._mine.get(ticket.key)
        return work is not None and work.claim.ticket.digest != ticket.digest

    def is_open(self, key: str) -> bool:
        """Whether a request was heard, and is neither started here nor claimed elsewhere."""
        work = self._mine.get(key)
        return key in self._heard or (work is not None and not work.is_started)

    def hear(self, claim: Claim, now: float) -> list[Effect]:
        """A request came; `claim` is what we would say of it."""
        if not self.peers and self.is_joined:
            return self._take(claim, now)
        key = claim.key
        if (work := self._mine.get(key)) is not None:
            work.claim = msgspec.structs.replace(work.claim, ticket=claim.ticket)
            return []
        self._done.pop(key, None)
        if (theirs := self._theirs.get(key)) is not None:
            if theirs.ticket.digest == claim.ticket.digest:
                self._theirs[key] = msgspec.structs.replace(theirs, ticket=claim.ticket)
            return []
        if self._heard.is_claimed(claim.ticket):
            return []
        if self.is_joined and self._is_chosen(claim):
            return self._take(claim, now)
        node, when = self._settled.get(key, ("", now - UNCLAIMED_S))
        if node in self.others and when > now - UNCLAIMED_S:
            return []
        self._heard.keep(claim, now)
        return []

    def resume(self, claim: Claim, now: float) -> list[Effect]:
        """A request of our former life."""
        return self._take(claim, now)

    def owe(self, key: str) -> None:
        """Our former life has answered a request, and the broker may not have the answer."""
        self._owed[key] = False

    def repeat(self, ticket: Ticket) -> list[Effect]:
        """A request came that was answered here, so nobody else need care for it."""
        return [Inform(ticket)] if self.peers and ticket.key not in self._mine else []

    def withdraw(self, ticket: Ticket) -> list[Effect]:
        """The request was refused, so nobody need care for it."""
        work = self._mine.pop(ticket.key, None)
        effects: list[Effect] = [Inform(ticket)] if self.peers else []
        if work is not None and work.is_told:
            effects.append(Clear(ticket.key))
        return effects

    def finish(self, key: str) -> list[Effect]:
        """The broker has the final message."""
        if self._owed.pop(key, None) is not None:
            return [Clear(key)] if self.peers else []
        work = self._mine.pop(key, None)
        if work is None:
            return []
        _put(self._done, key, None, _MAX_DONE)
        return [Clear(work.claim.key)] if work.is_told else []

    def claimed(self, claim: Claim, now: float, *, is_retained: bool = False) -> list[Effect]:
        """A claim was published, ours among them."""
        key = claim.key
        if self._heard_again is not None:
            self._heard_again.add(key)
        if claim.node == self.us.node:
            return self._own(claim, now)
        if key in self._owed:
            self._owed[key] = True
            return [Inform(claim.ticket)]
        if self._has_answered(key):
            return [Inform(claim.ticket), Clear(key)]
        effects: list[Effect] = []
        if (work := self._mine.get(key)) is not None:
            if _rank(work.claim) > _rank(claim):
                return self._tell(work)
            del self._mine[key]
            effects.append(GiveUp(key))
            if work.is_told:
                # Ours may have been published after the one that counts.
                effects.append(Tell(claim))
        self._heard.claim(claim.ticket)
        theirs = self._theirs.get(key)
        # A lesser claim is given up by whoever made it, as soon as it hears of the other.
        if theirs is None or _rank(claim) >= _rank(theirs) or self._is_gone(theirs, now):
            _put(self._theirs, key, claim, _MAX_THEIRS)
        if claim.node not in self.peers:
            self._strangers.setdefault(claim.node, now)
        if not is_retained:
            effects.append(Agree(claim))
        return effects

    def cleared(self, key: str, now: float) -> list[Effect]:
        """A claim was cleared, ours among them."""
        theirs = self._theirs.pop(key, None)
        if theirs is not None:
            _put(self._settled, key, (theirs.node, now), _MAX_THEIRS)
        self._heard.drop(key)
        work = self._mine.get(key)
        return self._tell(work) if work is not None and work.is_told else []

    def known(self, key: str, node: str, digest: bytes, now: float) -> list[Effect]:
        """A target has answered a request, or refused it."""
        if node == self.us.node:
            return []
        _put(self._settled, key, (node, now), _MAX_THEIRS)
        self._heard.settle(key, digest)
        if (theirs := self._theirs.get(key)) is not None and theirs.node == node:
            del self._theirs[key]
        work = self._mine.get(key)
        if work is None or self._has_answered(key):
            return []
        del self._mine[key]
        return [GiveUp(key)]

    def consented(self, node: str, key: str, generation: int) -> list[Effect]:
        """Another target agrees to our claim."""
        if (peer := self.peers.get(node)) is not None:
            peer.is_silent = False
        work = self._mine.get(key)
        if work is None or work.claim.generation != generation:
            return []
        work.waiting.discard(node)
        return self._start_if_free(work)

    def stands(self, standing: Standing, now: float) -> list[Effect]:
        """Another target of our identity said how it stands."""
        node = standing.node
        self._strangers.pop(node, None)
        before = self.peers.get(node)
        if standing.state == "left":
            self.peers.pop(node, None)
            return [*self._not_waiting_for([node]), *self._reconsider(now)]
        if standing.state == "lost":
            lost_at = now if before is None or before.lost_at is None else before.lost_at
            self.peers[node] = _Peer(standing, now, lost_at)
            return [*self._not_waiting_for([node]), *self._reconsider(now)]
        is_same = before is not None and before.standing.session == standing.session
        self.peers[node] = _Peer(standing, before.since if before and is_same else now)
        is_news = before is None or before.lost_at is not None or not is_same
        effects: list[Effect] = []
        if is_news:
            for work in self._mine.values():
                effects += self._tell(work)
        return [*effects, *self._reconsider(now)]

    def say(self, state: StandingState, now: float) -> list[Effect]:
        """We stand otherwise."""
        self.us = msgspec.structs.replace(self.us, state=state)
        return self._reconsider(now)

    def lose(self, now: float) -> None:
        """The connection broke: until it is back nothing is known."""
        self.is_joined = False
        for peer in self.peers.values():
            if peer.lost_at is None:
                peer.lost_at = now

    def arrive(self, now: float) -> None:
        """A connection stands; what the broker holds comes now."""
        self.lose(now)
        self._heard_again = set()

    def join(self, now: float, *, is_remembered: bool) -> list[Effect]:
        """All that the broker holds has come; `is_remembered`: it still had our own words.

        The grace of those who are not there begins now, for they may come a little later.
        """
        heard_again, self._heard_again = self._heard_again or set(), None
        if is_remembered:
            for key in self._theirs.keys() - heard_again:
                del self._theirs[key]
        for peer in self.peers.values():
            if peer.lost_at is not None:
                peer.lost_at = now
        self.is_joined = self.has_joined = True
        effects: list[Effect] = []
        for work in self._mine.values():
            work.waiting, work.until = self._to_ask(), now + CONSENT_S
            if self.peers:
                effects += self._tell(work)
        for work in list(self._mine.values()):
            effects += self._start_if_free(work)
        for key, is_ours in list(self._owed.items()):
            # Where others are, what was ours is on the broker, unless one of them has answered.
            if is_ours or not self.peers or not is_remembered or key in heard_again:
                self._owed[key] = True
            else:
                del self._owed[key]
                effects.append(GiveUp(key))
        return [*effects, *self._reconsider(now)]

    def tick(self, now: float) -> list[Effect]:
        """Time passes."""
        effects: list[Effect] = []
        silent = {
            node for work in self._mine.values() if work.until <= now for node in work.waiting
        }
        for node in silent & self.peers.keys():
            self.peers[node].is_silent = True
        if silent:
            effects += self._not_waiting_for(silent)
        for node, peer in list(self.peers.items()):
            if peer.lost_at is not None and peer.lost_at + _FORGET_S <= now:
                del self.peers[node]
        return [*effects, *self._reconsider(now)]

    def _take(self, claim: Claim, now: float) -> list[Effect]:
        work = _Work(claim, self._to_ask(), now + CONSENT_S)
        self._mine[claim.key] = work
        effects = self._tell(work) if self.peers and self.is_joined else []
        return [*effects, *self._start_if_free(work)]

    def _tell(self, work: _Work) -> list[Effect]:
        work.is_told = True
        return [Tell(work.claim)]

    def _start_if_free(self, work: _Work) -> list[Effect]:
        if work.is_started or work.waiting or not self.is_joined:
            return []
        work.is_started = True
        return [Start(work.claim)]

    def _not_waiting_for(self, nodes: Iterable[str]) -> list[Effect]:
        effects: list[Effect] = []
        for work in list(self._mine.values()):
            if work.waiting:
                work.waiting.difference_update(nodes)
                effects += self._start_if_free(work)
        return effects

    def _to_ask(self) -> set[str]:
        return {node for node in self.others if not self.peers[node].is_silent}

    def _own(self, claim: Claim, now: float) -> list[Effect]:
        """Our own word comes back, or that of a former life of ours."""
        work = self._mine.get(claim.key)
        if claim.session == self.us.session:
            return [Clear(claim.key)] if work is None and claim.key in self._done else []
        if work is None:
            if claim.key in self._owed:
                return []
            if self._has_answered(claim.key):
                return [Clear(claim.key)]
            return self._take(msgspec.structs.replace(claim, session=self.us.session), now)
        if claim.generation > work.claim.generation:
            work.claim = msgspec.structs.replace(work.claim, generation=claim.generation)
        return self._tell(work)

    def _has_answered(self, key: str) -> bool:
        return key in self._done or self._knows(key)

    def _eligible(self) -> Collection[str]:
        """Who may take a request: those who are ready; if nobody is, all who are there."""
        ready = [n for n in self.others if self.peers[n].standing.state == "ready"]
        if self.us.state == "ready":
            ready.append(self.us.node)
        return ready or [self.us.node, *self.others]

    def _is_chosen(self, claim: Claim) -> bool:
        # The name of a request without an id is ours alone.
        key = claim.key if claim.ticket.is_named else claim.ticket.digest.hex()
        return chosen(key, self._eligible()) == self.us.node

    def _reconsider(self, now: float) -> list[Effect]:
        """Take what falls to us by now."""
        if not self.is_joined:
            return []
        effects: list[Effect] = []
        for claim, since in self._heard.all():
            is_stale = since + UNCLAIMED_S <= now and self.us.node in self._eligible()
            if is_stale or self._is_chosen(claim):
                self._heard.drop(claim.key)
                effects += self._take(claim, now)
        for key, theirs in list(self._theirs.items()):
            if self._is_gone(theirs, now) and chosen(key, self._eligible()) == self.us.node:
                del self._theirs[key]
                effects += self._take(self._taken(theirs), now)
        return effects

    def _is_gone(self, claim: Claim, now: float) -> bool:
        """Whether nobody works on a claim, nor will come back to it soon."""
        peer = self.peers.get(claim.node)
        if peer is None:
            # A target that has said that it leaves is waited for no more.
            since = self._strangers.get(claim.node, -math.inf)
        elif peer.lost_at is not None:
            since = peer.lost_at
        elif peer.standing.session != claim.session:
            since = peer.since  # another life of it, which will say what it goes on with
        else:
            return False
        return since + GRACE_S <= now

    def _taken(self, theirs: Claim) -> Claim:
        return msgspec.structs.replace(
            theirs, node=self.us.node, session=self.us.session,
            generation=theirs.generation + 1, taken_from=theirs.node,
        )  # fmt: skip


def _rank(claim: Claim) -> tuple[int, bytes]:
    return claim.generation, weight(claim.key, claim.node)


def _put(entries: OrderedDict[str, V], key: str, value: V, limit: int) -> None:
    entries[key] = value
    if len(entries) > limit:
        entries.popitem(last=False)
