"""The coordinator's view of its links: which nodes hold which member of its committee."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from edgecosine.config import NodeConfig
from edgecosine.engine.options import Loaded
from edgecosine.node.links.link import Link
from edgecosine.node.member.local_member import LocalMember
from edgecosine.node.member.member_worker import MemberWorker
from edgecosine.node.target.committee import Committee, Seat
from edgecosine.node.target.member_client import MemberClient, MemberLink

logger = logging.getLogger(__name__)

_WEIGHT_ERROR = 1e-6


class CommitteeLinks:
    """Checks and sorts the linked members; makes the committee.

    The first node of a member fixes the member's checkpoint for the life of this process, so that
    no other model can take its place.
    """

    def __init__(
        self, config: NodeConfig, loaded: Loaded, checkpoint: str, worker: MemberWorker
    ) -> None:
        self._weights = config.committee.weights
        self._own = config.node_id
        self._links: dict[str, dict[str, Link]] = {name: {} for name in self._weights}
        self._checkpoints = {self._own: checkpoint}
        own = LocalMember(worker)
        waits = config.committee.on_member_loss == "wait"
        seats = [
            Seat(self._own, 1.0 - sum(self._weights.values()), self._client(own)),
            *(
                Seat(name, weight, MemberClient(name, partial(self.of, name), waits=waits))
                for name, weight in self._weights.items()
            ),
        ]
        self.committee = Committee(
            seats,
            vocabulary=loaded.num_rows,
            eos_tokens=loaded.codec.eos_tokens if loaded.codec else (),
            listed=config.committee.listed,
        )

    def __repr__(self) -> str:
        return f"<CommitteeLinks of {self._own}, away: {self.committee.away}>"

    @property
    def facts(self) -> dict[str, Any]:
        """What determines the texts: the weights, and the digest once all members were linked."""
        known = {name: self._checkpoints.get(name) for name in self.weights}
        digest = None
        if all(known.values()):
            spelt = repr([(name, weight, known[name]) for name, weight in self.weights.items()])
            digest = hashlib.blake2b(spelt.encode(), digest_size=16).hexdigest()
        return {"weights": self.weights, "digest": digest}

    @property
    def weights(self) -> dict[str, float]:
        """The weights of all members by name, the target's own first."""
        return {seat.name: seat.weight for seat in self.committee.seats}

    def _client(self, own: LocalMember) -> MemberClient:
        return MemberClient(self._own, lambda: {self._own: own})

    def of(self, name: str) -> Mapping[str, MemberLink]:
        """The nodes that hold a member and accept requests, by node id."""
        return {node: link for node, link in self._links[name].items() if not link.is_leaving}

    def add(self, link: Link) -> None:
        """A member's node was linked; the link is closed where it does not fit the committee."""
        hello = link.peer
        if (objection := self._objection(link)) is not None:
            logger.warning("member refused: peer=%s reason=%s", hello.node_id, objection)
            link.close(objection)
            return
        self._checkpoints[hello.member] = hello.checkpoint
        self._links[hello.member][hello.node_id] = link
        self._changed(hello.member)

    def remove(self, link: Link) -> None:
        """The link has ended."""
        nodes = self._links.get(link.peer.member, {})
        if nodes.get(link.peer.node_id) is link:
            del nodes[link.peer.node_id]
            self._changed(link.peer.member)

    def view(self) -> dict[str, Any]:
        """The members for the node's state, by name."""
        totals = self.committee.totals
        rounds = max(1, totals.num_rounds)
        return {
            seat.name: {
                "weight": round(seat.weight, 6),
                "nodes": sorted(self._links.get(seat.name, [self._own])),
                "checkpoint": self._checkpoints.get(seat.name, ""),
                "slowest": totals.slowest[seat.name],
                "round_ms": round(1e3 * totals.seconds.get(seat.name, 0.0) / rounds, 2),
            }
            for seat in self.committee.seats
        }

    def _objection(self, link: Link) -> str | None:
        hello = link.peer
        weight = self._weights.get(hello.member)
        if weight is None:
            names = ", ".join(self._weights)
            return f"the committee has no member {hello.member}: it has {names}"
        if hello.weight and abs(hello.weight - weight) > _WEIGHT_ERROR:
            return f"member {hello.member} has weight {weight:g} here and {hello.weight:g} there"
        known = self._checkpoints.get(hello.member)
        if known is not None and known != hello.checkpoint:
            return (
                f"member {hello.member} was another model before: restart the target to change it"
            )
        return None

    def _changed(self, name: str) -> None:
        for seat in self.committee.seats:
            if seat.name == name:
                seat.client.on_links_changed()
