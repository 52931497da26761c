"""Requests the judgements of one member of a committee, from all nodes that hold its name.

Replicas are asked at once; the first answer counts. A member without a linked node is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from edgecosine.errors import EdgecosineError, LinkError, RemoteProtocolError
from edgecosine.node.runtime.clock import now
from edgecosine.protocol.wire.messages import (
    AnyMessage,
    Judgement,
    JudgeRequest,
    OutOfStep,
    Release,
    Reveal,
    SharedNoise,
    pack_parents,
    pack_tokens,
)
from edgecosine.protocol.wire.prefix import Prefix
from edgecosine.protocol.wire.tree import TokenTree

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 4
"""Requests of one judgement that a node may answer as out of step."""


class MemberLink(Protocol):
    """The part of a link to a member's node that a committee uses."""

    async def judge(self, request: JudgeRequest | Reveal) -> Judgement | OutOfStep:
        """Raises LinkError when the link ends."""

    def send(self, message: AnyMessage) -> None:
        """Raises LinkError when the link has ended."""

    def put_out(self, error: RemoteProtocolError) -> None:
        """End the link to a node whose answer is invalid, and keep the node out."""


class CannotJudge(EdgecosineError):
    """A member's node fails at this request repeatedly."""


class MemberAway(EdgecosineError):
    """No node of the member is linked."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The work to judge: a sequence and a tree, and the lists that are requested of each row."""

    key: str
    prefix: Prefix
    tree: TokenTree
    noise: SharedNoise
    num_scores: int
    num_logits: int
    also: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """A judgement, the node that answered, and the seconds until its answer."""

    judgement: Judgement
    node_id: str
    link: MemberLink
    round: int
    elapsed_s: float

    @property
    def compute_s(self) -> float:
        """The part of the time that the node's forward pass took."""
        return min(self.elapsed_s, self.judgement.compute_us * 1e-6)


class MemberClient:
    """One member. `links` returns its linked nodes by node id; `waits` is whether a member that is
    away is waited for; `is_remote`, whether its judgements come over a network."""

    def __init__(
        self,
        name: str,
        links: Callable[[], Mapping[str, MemberLink]],
        *,
        waits: bool = True,
        is_remote: bool = True,
    ) -> None:
        self.name, self._links, self._waits = name, links, waits
        self.is_remote = is_remote
        self._num_sent: dict[tuple[str, str], int] = {}
        """Tokens of a sequence that a node has, by (key, node id)."""
        self._round = 0
        self._changed = asyncio.Event()
        self.on_awaited: Callable[[], None] = _nothing
        """Called when `is_awaited` changes."""
        self.is_awaited = False
        """Whether a judgement waits for a node of this member to be linked."""

    def __repr__(self) -> str:
        return f"<MemberClient {self.name} [{len(self._links())} nodes]>"

    @property
    def is_away(self) -> bool:
        """Whether no node of the member is linked."""
        return not self._links()

    def on_links_changed(self) -> None:
        """A node was linked or lost."""
        self._changed.set()

    async def judge(self, subject: Subject) -> Answered:
        """The first judgement of any of the member's nodes.

        Raises MemberAway if none is linked and the member is not waited for, CannotJudge where a
        node fails at this subject.
        """
        while True:
            self._changed.clear()
            if answered := await self._first(subject):
                return answered
            if self._links():
                continue
            if not self._waits:
                raise MemberAway(f"member {self.name} is away")
            self._set_awaited(is_awaited=True)
            try:
                await self._changed.wait()
            finally:
                self._set_awaited(is_awaited=False)

    async def reveal(self, answered: Answered, reveal: Reveal) -> Judgement | OutOfStep | None:
        """More about a judged row, from the node that judged it; OutOfStep if it has dropped the
        row, None if its link has ended."""
        try:
            return await answered.link.judge(reveal)
        except LinkError:
            return None

    def release(self, key: str) -> None:
        """The sequence has ended."""
        for node_id, link in self._links().items():
            if self._num_sent.pop((key, node_id), None) is not None:
                with contextlib.suppress(LinkError):
                    link.send(Release(key))
        for sent in [sent for sent in self._num_sent if sent[0] == key]:
            del self._num_sent[sent]

    def _set_awaited(self, *, is_awaited: bool) -> None:
        self.is_awaited = is_awaited
        self.on_awaited()

    async def _first(self, subject: Subject) -> Answered | None:
        """The first answer of the nodes that are linked now; None if all links end before."""
        links, failure = self._links(), None
        if not links:
            return None
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._ask(node_id, link, subject), name=f"judge-{node_id}")
                for node_id, link in links.items()
            ]
            pending = set(tasks)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    answered = task.result()
                    if isinstance(answered, Answered):
                        for other in pending:
                            other.cancel()
                        return answered
                    failure = answered or failure
        if failure is not None:
            raise failure
        return None

    async def _ask(
        self, node_id: str, link: MemberLink, subject: Subject
    ) -> Answered | CannotJudge | None:
        """One node's judgement; None if its link ends."""
        asked = now()
        with contextlib.suppress(LinkError):
            for _ in range(MAX_ATTEMPTS):
                self._round += 1
                number = self._round
                reply = await link.judge(self._request(node_id, number, subject))
                if isinstance(reply, Judgement):
                    return Answered(reply, node_id, link, number, now() - asked)
                sent = subject.key, node_id
                self._num_sent[sent] = min(reply.have, self._num_sent.get(sent, 0))
            return CannotJudge(f"member {self.name} cannot judge this request: see its log")
        return None

    def _request(self, node_id: str, number: int, subject: Subject) -> JudgeRequest:
        prefix, tree = subject.prefix, subject.tree
        start = self._num_sent.get((subject.key, node_id), 0)
        self._num_sent[subject.key, node_id] = len(prefix)
        return JudgeRequest(
            request_id=subject.key,
            round=number,
            prefix_len=len(prefix),
            prefix_digest=prefix.digest(),
            new_tokens=pack_tokens(prefix.tokens[start:]),
            tree_tokens=pack_tokens(tree.tokens),
            tree_parents=pack_parents(tree.parents),
            coupling=subject.noise,
            num_scores=subject.num_scores,
            num_logits=subject.num_logits,
            also=pack_tokens(subject.also),
        )


def _nothing() -> None:
    pass
