"""The coordinator's view of its links: which nodes hold which member of its committee."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgecosine.config import NodeConfig
from edgecosine.engine.options import Loaded
from edgecosine.node.links.link import Link
from edgecosine.node.member.local_member import LocalMember
from edgecosine.node.member.member_worker import MemberWorker
from edgecosine.node.roles.identity import checkpoint_of
from edgecosine.node.target.committee import Committee, Seat
from edgecosine.node.target.member_client import MemberClient, MemberLink

logger = logging.getLogger(__name__)

_WEIGHT_ERROR = 1e-6


@dataclass(frozen=True, slots=True)
class KnownMember:
    """A member's model, as the first of its nodes greeted; empty before that."""

    model: str = ""
    checkpoint: str = ""
    exactness: str = ""


class CommitteeLinks:
    """Checks and sorts the linked members; makes the committee.

    The first node of a member fixes the member's model for the life of this process, so that no
    other can take its place. `own` is the worker of the target's own engine; None: the target only
    coordinates.
    """

    def __init__(self, config: NodeConfig, loaded: Loaded, own: MemberWorker | None) -> None:
        options, codec = config.committee, loaded.codec
        assert codec is not None, "a target has a tokenizer"
        self._own, self._loaded = config.node_id, loaded
        self._links: dict[str, dict[str, Link]] = {name: {} for name in options.weights}
        self._known: dict[str, KnownMember] = {}
        waits = options.on_member_loss == "wait"
        seats = [
            Seat(name, weight, MemberClient(name, partial(self.of, name), waits=waits))
            for name, weight in options.weights.items()
        ]
        if own is not None:
            mine = LocalMember(own)
            client = MemberClient(self._own, lambda: {self._own: mine}, is_remote=False)
            seats.insert(0, Seat(self._own, options.own_weight, client))
            self._known[self._own] = KnownMember(
                loaded.name, checkpoint_of(config, loaded), loaded.exactness
            )
        self.committee = Committee(
            seats,
            vocabulary=codec.num_tokens,
            eos_tokens=codec.eos_tokens,
            listed=options.listed,
        )
        self.complete = asyncio.Event()
        """Set once every member was linked, so that all models are known."""

    def __repr__(self) -> str:
        return f"<CommitteeLinks of {self._own}, away: {self.committee.away}>"

    @property
    def facts(self) -> Mapping[str, Any]:
        """JSON values for the cluster's info: the members in order, and what their texts are."""
        return {"committee": self._members(), "exactness": self.exactness}

    @property
    def checkpoints(self) -> list[tuple[float, str]]:
        """Weight and checkpoint of each member in order; an empty checkpoint is not known yet."""
        return [(seat.weight, known.checkpoint) for seat, known in self._seats()]

    @property
    def exactness(self) -> str:
        """The policy of the member that guarantees least."""
        policies = {known.exactness for _, known in self._seats()}
        return "bitwise" if policies == {"bitwise"} else "rounding"

    def _seats(self) -> list[tuple[Seat, KnownMember]]:
        nothing = KnownMember()
        return [(seat, self._known.get(seat.name, nothing)) for seat in self.committee.seats]

    def _members(self) -> list[dict[str, Any]]:
        return [
            {"member": seat.name, "weight": round(seat.weight, 6), "model": known.model}
            for seat, known in self._seats()
        ]

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
        known = KnownMember(hello.model, hello.checkpoint, hello.exactness)
        self._known.setdefault(hello.member, known)
        self._links[hello.member][hello.node_id] = link
        if len(self._known) == len(self.committee.seats):
            self.complete.set()
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
                "model": known.model,
                "nodes": sorted(self._links.get(seat.name, [self._own])),
                "checkpoint": known.checkpoint,
                "slowest": totals.slowest[seat.name],
                "round_ms": round(1e3 * totals.seconds.get(seat.name, 0.0) / rounds, 2),
            }
            for seat, known in self._seats()
        }

    def _objection(self, link: Link) -> str | None:
        hello, weights = link.peer, {seat.name: seat.weight for seat in self.committee.seats}
        if hello.member not in self._links:
            names = ", ".join(self._links)
            return f"the committee has no member {hello.member}: it has {names}"
        weight = weights[hello.member]
        if hello.weight and abs(hello.weight - weight) > _WEIGHT_ERROR:
            return f"member {hello.member} has weight {weight:g} here and {hello.weight:g} there"
        if hello.max_context < self._loaded.max_context:
            return (
                f"member {hello.member} has a context of {hello.max_context} tokens: start the "
                f"target with --context {hello.max_context} or less"
            )
        known = self._known.get(hello.member)
        if known is not None and known.checkpoint != hello.checkpoint:
            return (
                f"member {hello.member} was another model before: restart the target to change it"
            )
        return None

    def _changed(self, name: str) -> None:
        for seat in self.committee.seats:
            if seat.name == name:
                seat.client.on_links_changed()
