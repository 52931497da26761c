"""Several models that answer as one: the target of a committee draws from the weighted mean of its
members' distributions (SpecFed, arXiv 2604.25777).

Each work is judged by all members at once, the target's own engine among them where it has one;
then the acceptance walk draws from the mixture, and asks back where short lists prove no token.
What is drawn depends on the members' rows alone, so that drafts, failures and the lengths of lists
change no text.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from edgecosine.engine.base import (
    FailedWork,
    Outcome,
    StepResult,
    VerificationResult,
    VerifyWork,
)
from edgecosine.errors import EdgecosineError, root_of
from edgecosine.fusion.committee.draw_rule import DrawRule, offsets_of
from edgecosine.node.runtime.clock import now
from edgecosine.node.target.committee_walk import CommitteeWalk, Rejudge, RowsDropped
from edgecosine.node.target.member_client import (
    MAX_ATTEMPTS,
    Answered,
    CannotJudge,
    MemberAway,
    MemberClient,
    Subject,
)
from edgecosine.node.target.shared_noise import noise_of
from edgecosine.protocol.wire.messages import MAX_ALSO
from edgecosine.protocol.wire.prefix import Prefix
from edgecosine.protocol.wire.tree import EMPTY_TREE

logger = logging.getLogger(__name__)

LISTED: Final = 16
"""Tokens that a member lists of each row at first."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A member's place: its weight, and the client that requests its judgements."""

    name: str
    weight: float
    client: MemberClient


@dataclass(slots=True)
class CommitteeTotals:
    """Counts since the start; `seconds` are the sums of the members' times, by name."""

    num_drawn: int = 0
    num_proved_at_once: int = 0
    num_dense: int = 0
    num_judged_again: int = 0
    """Works whose judgement was lost with a node, or dropped by it."""
    num_rows: int = 0
    num_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    slowest: Counter[str] = field(default_factory=Counter)
    """Rounds in which a member was the slowest, by name."""
    num_rounds: int = 0


class Committee:
    """Verifies works by all members together."""

    def __init__(
        self,
        seats: Sequence[Seat],
        *,
        vocabulary: int,
        eos_tokens: Collection[int],
        listed: int = LISTED,
    ) -> None:
        self.seats = tuple(seats)
        self._vocabulary, self._eos_tokens = vocabulary, frozenset(eos_tokens)
        self._listed = listed
        self._prefixes: dict[str, Prefix] = {}
        self.totals = CommitteeTotals()
        self.on_stall: Callable[[str | None], None] | None = None
        """Called with `stall` when it changes."""
        for seat in self.seats:
            seat.client.on_awaited = self._on_awaited

    def __repr__(self) -> str:
        return f"<Committee {', '.join(seat.name for seat in self.seats)}>"

    @property
    def away(self) -> list[str]:
        """Members without a linked node."""
        return [seat.name for seat in self.seats if seat.client.is_away]

    @property
    def stall(self) -> str | None:
        """Why no work advances now: the members that are awaited; None if none is."""
        names = [seat.name for seat in self.seats if seat.client.is_awaited]
        return f"member {' and '.join(names)} away" if names else None

    def _on_awaited(self) -> None:
        if self.on_stall is not None:
            self.on_stall(self.stall)

    async def run(
        self, works: Sequence[VerifyWork], released: Sequence[str]
    ) -> tuple[StepResult, float]:
        """Verify all works; returns also the seconds that it took."""
        started = now()
        for key in released:
            self._prefixes.pop(key, None)
            for seat in self.seats:
                seat.client.release(key)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._outcome(work), name="committee") for work in works]
        outcomes = [task.result() for task in tasks]
        num_rows = sum(1 + len(work.tree) for work in works)
        return StepResult(outcomes, num_rows), now() - started

    async def _outcome(self, work: VerifyWork) -> Outcome:
        try:
            return await self._verify_again(work)
        except (EdgecosineError, ValueError) as error:
            return FailedWork(error)

    async def _verify_again(self, work: VerifyWork) -> VerificationResult:
        """Verify a work, as often as nodes are lost meanwhile.

        Raises CannotJudge where a node drops its rows again and again.
        """
        num_dropped = 0
        while True:
            try:
                return await self._verify(work)
            except RowsDropped as error:
                self.totals.num_judged_again += 1
                num_dropped += 1
                if num_dropped == MAX_ATTEMPTS:
                    raise CannotJudge(f"{error}: serve fewer requests at one time") from error
                # Without drafts it has one row, which is dropped less soon than a tree's.
                work = msgspec.structs.replace(work, tree=EMPTY_TREE)
            except Rejudge as error:
                self.totals.num_judged_again += 1
                logger.info("judged again: request=%s reason=%s", work.key, error)

    async def _verify(self, work: VerifyWork) -> VerificationResult:
        subject, started = self._subject(work), now()
        answers = await self._judgements(subject)
        present = [seat for seat in self.seats if seat.name in answers]
        total = sum(seat.weight for seat in present)
        walk = CommitteeWalk(
            work=work,
            subject=subject,
            weights=[seat.weight / total for seat in present],
            clients=[seat.client for seat in present],
            answers=[answers[seat.name] for seat in present],
            vocabulary=self._vocabulary,
            eos_tokens=self._eos_tokens,
            is_complete=len(present) == len(self.seats),
        )
        result = await walk.run()
        self._count(walk)
        done = replace(walk.round, elapsed_s=now() - started)
        return msgspec.structs.replace(result, committee=done)

    async def _judgements(self, subject: Subject) -> Mapping[str, Answered]:
        """The members' answers by name, without those that are away and not waited for."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    seat.name: group.create_task(_judge(seat, subject), name=f"seat-{seat.name}")
                    for seat in self.seats
                }
        except BaseExceptionGroup as failures:
            raise root_of(failures) from None
        found = {name: task.result() for name, task in tasks.items()}
        return {name: answered for name, answered in found.items() if answered is not None}

    def _subject(self, work: VerifyWork) -> Subject:
        prefix = self._prefixes.setdefault(work.key, Prefix())
        prefix.extend(work.tokens[len(prefix) :])
        rule = self._rule(work)
        listed = max(self._listed, work.top_logprobs or 0)
        if work.reconstruction:
            num_scores, num_logits = 0, listed
        else:
            num_scores = listed if rule.needs_scores else 0
            num_logits = listed if rule.needs_logits else 0
        return Subject(
            key=work.key,
            prefix=prefix,
            tree=work.tree,
            noise=noise_of(work.sampling),
            num_scores=num_scores,
            num_logits=num_logits,
            also=tuple(sorted(self._named(work)))[:MAX_ALSO],
        )

    def _named(self, work: VerifyWork) -> set[int]:
        """Tokens whose probability may be changed at some node of the tree."""
        answer = [*work.tokens[work.num_prompt :], *work.tree.tokens]
        is_early = len(work.tokens) - work.num_prompt < work.sampling.min_tokens
        banned = self._eos_tokens.union(work.sampling.stop_token_ids) if is_early else ()
        return set(offsets_of(work.sampling, answer, banned))

    def _rule(self, work: VerifyWork) -> DrawRule:
        return DrawRule(work.sampling, len(work.tokens), {}, work.top_logprobs)

    def _count(self, walk: CommitteeWalk) -> None:
        totals, part = self.totals, walk.round
        totals.num_rounds += 1
        totals.slowest[part.slowest] += 1
        totals.num_drawn += part.num_drawn
        totals.num_proved_at_once += part.num_drawn - part.num_asked_back
        totals.num_dense += part.num_dense
        totals.num_rows += part.num_rows
        totals.num_bytes += part.num_bytes
        for name, seconds in part.seconds.items():
            totals.seconds[name] = totals.seconds.get(name, 0.0) + seconds


async def _judge(seat: Seat, subject: Subject) -> Answered | None:
    try:
        return await seat.client.judge(subject)
    except MemberAway:
        return None
