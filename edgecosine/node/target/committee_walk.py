"""The acceptance walk of a committee: at each node the mixture's token is drawn, from short lists
where they prove it; otherwise the members are asked for more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from edgecosine.engine.base import CommitteeRound, TokenMask, VerificationResult, VerifyWork
from edgecosine.errors import EdgecosineError, PeerInvalid, root_of
from edgecosine.fusion.committee.ballot import Ballot
from edgecosine.fusion.committee.bounds import known_bounds
from edgecosine.fusion.committee.draw import Drawn, Unproven, decide, draw_within
from edgecosine.fusion.committee.draw_rule import DrawRule, offsets_of
from edgecosine.fusion.committee.judged_rows import JudgedRows
from edgecosine.fusion.committee.reconstruction import mixture, most_different
from edgecosine.node.target.member_client import Answered, MemberClient, Subject
from edgecosine.protocol.api.request import Logprobs
from edgecosine.protocol.wire.messages import (
    MAX_LISTED,
    MAX_REVEALED,
    Judgement,
    OutOfStep,
    Reveal,
    pack_tokens,
)
from edgecosine.protocol.wire.tree import EMPTY_TREE, ROOT

Result = TypeVar("Result")

GROWTH: Final = 4
"""Factor by which the lists of a second and of a third request are longer than the former ones."""
MAX_LONGER: Final = 2
"""Requests for longer lists before whole rows are requested."""


class Rejudge(EdgecosineError):
    """A node that judged was lost or disconnected: the work is judged again."""


class RowsDropped(Rejudge):
    """A node has dropped the rows that it judged, for those of other requests."""


@dataclass(slots=True)
class Member:
    """One member's part in a walk: its rows, and the ballots of the nodes that were walked."""

    weight: float
    client: MemberClient
    answered: Answered
    rows: JudgedRows
    ballots: dict[int, Ballot] = field(default_factory=dict)


class CommitteeWalk:
    """Walks one work's tree; `run` is called once."""

    def __init__(
        self,
        *,
        work: VerifyWork,
        subject: Subject,
        weights: Sequence[float],
        clients: Sequence[MemberClient],
        answers: Sequence[Answered],
        vocabulary: int,
        eos_tokens: Collection[int],
        is_complete: bool,
    ) -> None:
        self._work, self._subject, self._vocabulary = work, subject, vocabulary
        self._ends = frozenset(eos_tokens).union(work.sampling.stop_token_ids)
        self._members = [
            Member(
                weight,
                client,
                answered,
                self._checked(
                    answered, partial(JudgedRows, answered.judgement, subject.also, vocabulary)
                ),
            )
            for weight, client, answered in zip(weights, clients, answers, strict=True)
        ]
        self._listed = max(subject.num_scores, subject.num_logits)
        remote = [member for member in self._members if member.client.is_remote]
        last = max(self._members, key=lambda member: member.answered.elapsed_s)
        self.round = CommitteeRound(
            seconds={each.client.name: each.answered.elapsed_s for each in self._members},
            slowest=last.client.name,
            compute_s=last.answered.compute_s,
            num_rows=sum(len(member.rows) for member in remote),
            num_bytes=sum(_size(member.answered.judgement) for member in remote),
            is_exact=is_complete and not work.reconstruction,
        )

    async def run(self) -> VerificationResult:
        """The accepted path and the bonus token; `round` then has times and counts.

        Raises Rejudge when a node that judged has no further values.
        """
        work, path, accepted = self._work, list[int](), list[int]()
        # A member whose logits in the tree are undefined lists the root's row alone.
        is_whole = all(len(each.rows) == 1 + len(work.tree) for each in self._members)
        tree, node, logprobs = work.tree if is_whole else EMPTY_TREE, ROOT, list[Logprobs]()
        while True:
            drawn = await self._draw(node, accepted)
            if drawn.logprobs is not None:
                logprobs.append(drawn.logprobs)
            child = tree.child(node, drawn.token)
            if child is None:
                return VerificationResult(tuple(path), drawn.token, tuple(logprobs))
            node = child
            path.append(child)
            accepted.append(drawn.token)

    async def _draw(self, node: int, accepted: Sequence[int]) -> Drawn:
        """The mixture's draw at a node, after the further requests that its proof needs."""
        rule = self._rule(accepted)
        if self._work.reconstruction:
            return self._draw_reconstructed(node, rule)
        weights = [member.weight for member in self._members]
        num_longer = 0
        is_first = True
        while True:
            outcome = decide(weights, self._ballots(node), rule, self._vocabulary)
            if isinstance(outcome, Drawn):
                self._count(num_drawn=1, num_asked_back=int(not is_first))
                return outcome
            is_first = False
            if outcome.ids:
                await self._reveal(node, outcome)
            else:
                num_longer += 1
                await self._lengthen(node, rule, num_longer)

    def _draw_reconstructed(self, node: int, rule: DrawRule) -> Drawn:
        how, members = self._work.reconstruction, self._members
        weights = [member.weight for member in members]
        logprobs, lost = mixture(weights, self._ballots(node), how, self._vocabulary)
        outcome = draw_within(known_bounds(logprobs, rule), rule)
        assert isinstance(outcome, Drawn), "a distribution that is known proves every draw"
        self._count(num_drawn=1)
        self._count(lost=lost, differing=most_different(lost))
        return outcome

    def _rule(self, accepted: Sequence[int]) -> DrawRule:
        work = self._work
        answer = [*work.tokens[work.num_prompt :], *accepted]
        banned = self._ends if len(answer) < work.sampling.min_tokens else ()
        offsets = offsets_of(work.sampling, answer, banned)
        position = len(work.tokens) + len(accepted)
        mask = None if work.constraint is None else work.constraint.allowed(answer)
        allowed = None if mask is None else _members_of(mask, self._vocabulary)
        return DrawRule(work.sampling, position, offsets, work.top_logprobs, allowed)

    async def _reveal(self, node: int, wanted: Unproven) -> None:
        """Request the logits of tokens from the members that did not list them."""

        async def ask(member: Member) -> None:
            listed = set(member.ballots[node].ids.tolist())
            missing = [token for token in wanted.ids if token not in listed][:MAX_REVEALED]
            if missing:
                reveal = Reveal(
                    self._subject.key, member.answered.round, node, pack_tokens(missing)
                )
                await self._ask_back(member, reveal, missing)

        await self._ask_all(ask)

    async def _lengthen(self, node: int, rule: DrawRule, times: int) -> None:
        """Request longer lists, and in the end whole rows."""
        listed = min(MAX_LISTED, self._listed * GROWTH**times)
        is_dense = times > MAX_LONGER or listed >= self._vocabulary
        self._count(num_dense=int(is_dense))

        async def ask(member: Member) -> None:
            reveal = Reveal(
                self._subject.key,
                member.answered.round,
                node,
                num_scores=listed if rule.needs_scores and not is_dense else 0,
                num_logits=listed if rule.needs_logits and not is_dense else 0,
                is_dense=is_dense,
            )
            await self._ask_back(member, reveal, ())

        await self._ask_all(ask)

    async def _ask_all(self, ask: Callable[[Member], Coroutine[Any, Any, None]]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for member in self._members:
                    group.create_task(ask(member), name="reveal")
        except BaseExceptionGroup as failures:
            raise root_of(failures) from None

    async def _ask_back(self, member: Member, reveal: Reveal, also: Sequence[int]) -> None:
        judgement = await member.client.reveal(member.answered, reveal)
        if judgement is None:
            raise Rejudge(f"node {member.answered.node_id} was lost")
        if isinstance(judgement, OutOfStep):
            raise RowsDropped(f"node {member.answered.node_id} has dropped its rows")
        if member.client.is_remote:
            self._count(num_bytes=_size(judgement))

        def extended() -> Ballot:
            rows = JudgedRows(judgement, also, self._vocabulary, is_dense=reveal.is_dense)
            if len(rows) != 1:
                raise ValueError(f"{len(rows)} rows for one node")
            former = member.ballots[reveal.node]
            return former.extended(rows.ballot(0), vocabulary=self._vocabulary)

        member.ballots[reveal.node] = self._checked(member.answered, extended)

    def _ballots(self, node: int) -> list[Ballot]:
        """The members' ballots at a node, in order."""
        for member in self._members:
            if node not in member.ballots:
                read = partial(member.rows.ballot, node + 1)
                member.ballots[node] = self._checked(member.answered, read)
        return [member.ballots[node] for member in self._members]

    def _checked(self, answered: Answered, read: Callable[[], Result]) -> Result:
        """The result of `read`; a node whose message it finds invalid is disconnected."""
        try:
            return read()
        except ValueError as error:
            raise self._put_out(answered, error) from error

    def _put_out(self, answered: Answered, error: ValueError) -> Rejudge:
        answered.link.put_out(PeerInvalid(f"the peer sent an invalid judgement: {error}"))
        return Rejudge(f"node {answered.node_id} sent an invalid judgement")

    def _count(self, **more: float) -> None:
        self.round = replace(
            self.round, **{name: getattr(self.round, name) + by for name, by in more.items()}
        )


def _members_of(mask: TokenMask, vocabulary: int) -> npt.NDArray[np.bool_]:
    """The mask as an array [vocabulary]."""
    bits = np.frombuffer(mask.bits, dtype=np.uint8)
    return np.unpackbits(bits, count=vocabulary, bitorder="little").astype(bool)


def _size(judgement: Judgement) -> int:
    """Bytes of the numbers in a judgement."""
    return sum(
        len(part)
        for part in (
            judgement.ids, judgement.logits, judgement.lse, judgement.score_bounds,
            judgement.logit_bounds, judgement.also,
        )
    )  # fmt: skip
