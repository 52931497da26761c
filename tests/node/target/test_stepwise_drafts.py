"""Rounds step by step: used if drafters are right alternately and exchanges are cheap, dropped when
they become expensive. Time is simulated."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from edgecosine.balance.cost_model import PassReport
from edgecosine.balance.plan import MAX_NODES, Plan
from edgecosine.balance.planner import Planner
from edgecosine.balance.round import Round
from edgecosine.engine.target.acceptance import walk
from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.node.target.draft_client import DraftClient
from edgecosine.node.target.stepwise_drafts import gather_by_steps
from tests.fusion.drafts import draft_of

PASS_S, TOKEN_S = 0.03, 0.001
NAMES = ("even", "odd")


def truth(position: int) -> int:
    """The target's own text."""
    return 1000 + position


@dataclass
class World:
    """Two drafters, each right at every other position or, if `is_good`, at all; and a planner."""

    policy: str = "edgecosine"
    rtt_s: float = 0.0001
    is_good: bool = False
    planner: Planner = field(default_factory=Planner)
    now_s: float = 0.0
    length: int = 10
    forms: list[int] = field(default_factory=list)
    """The interval of each round."""

    def __post_init__(self) -> None:
        for rows in (1, MAX_NODES + 1):
            self.planner.statistics.observe_pass(PassReport(rows, PASS_S))
        self.request = self.planner.statistics.open(self.policy)

    async def gather(self, plan: Plan, trunk: Sequence[int] = ()) -> list[DrafterTree]:
        """The drafts of the plan's drafters; replaces `DraftClient`."""
        compute_s = plan.gamma * TOKEN_S
        if plan.drafters and not plan.is_probe:
            self.now_s += self.rtt_s + compute_s
        for node_id in plan.drafters:
            self.planner.statistics.observe_answer(
                node_id, self.rtt_s + compute_s, compute_s, plan.gamma,
                is_disturbed=plan.is_probe or len(plan.drafters) > 1,
            )  # fmt: skip
        start = self.length + len(trunk)
        return [self._draft(node_id, start, plan.gamma) for node_id in plan.drafters]

    def _draft(self, node_id: str, start: int, size: int) -> DrafterTree:
        places = range(start, start + size)
        hits = [self.is_good or at % 2 == NAMES.index(node_id) for at in places]
        tokens = tuple(truth(at) if hit else 1 for at, hit in zip(places, hits, strict=True))
        return draft_of(node_id, start, tokens, tuple(0.9 if hit else 0.3 for hit in hits))

    def play(self, num_rounds: int) -> float:
        """Run rounds; returns their tokens per second."""
        began_s, first = self.now_s, self.length
        for _ in range(num_rounds):
            asyncio.run(self._play_round())
        return (self.length - first) / (self.now_s - began_s)

    async def _play_round(self) -> None:
        made, request = self.planner, self.request
        plan, asked = made.plan(request, NAMES, 100), self.now_s
        if plan.interval:
            drafts = await gather_by_steps(
                cast(DraftClient, self), made.statistics.acceptance, request, plan
            )
        else:
            drafts = await self.gather(plan)
        waited_s = self.now_s - asked
        made.statistics.observe_wait(plan, waited_s)
        tree = made.fuse(request, Round(plan, drafts), 99, waited_s)
        tried = await self.gather(made.probe(request, NAMES, plan))
        result = walk(tree, lambda _, accepted: truth(self.length + len(accepted)))
        self.now_s += PASS_S
        if plan.drafters:
            made.statistics.observe_round(
                request, plan, waited_s=waited_s, was_ready=False, num_accepted=len(result.path)
            )
        self.length += len(result.path) + 1
        committed = [truth(at) for at in range(self.length)]
        made.statistics.acceptance.observe_truth(request, [*drafts, *tried], committed)
        self.forms.append(plan.interval)


def stepped(forms: Sequence[int]) -> float:
    """Share of rounds step by step."""
    return sum(map(bool, forms)) / len(forms)


def test_drafters_right_alternately_go_step_by_step_if_exchanges_are_cheap() -> None:
    world, without = World(), World("edgecosine-without-steps")
    world.play(60)
    without.play(60)
    assert stepped(world.forms[-30:]) > 0.8
    assert stepped(without.forms) == 0.0
    assert world.play(60) > 1.5 * without.play(60)
    assert "fused every" in world.planner.last_reason


def test_steps_follow_the_round_trip_time() -> None:
    world, without = World(), World("edgecosine-without-steps")
    for each in (world, without):
        each.play(60)
        each.rtt_s = 0.03
        each.play(120)
    assert stepped(world.forms[-60:]) < 0.2
    assert world.play(60) > 0.95 * without.play(60)
    world.rtt_s = 0.0001
    world.play(200)
    assert stepped(world.forms[-40:]) > 0.8


def test_rounds_are_fused_once_if_each_drafter_is_right_alone() -> None:
    world = World(is_good=True)
    world.play(100)
    assert stepped(world.forms) == 0.0


def test_wrong_estimate_is_hardly_probed_again() -> None:
    """The drafters are right only at the first piece of a trunk."""

    class Deceived(World):
        def _draft(self, node_id: str, start: int, size: int) -> DrafterTree:
            draft = super()._draft(node_id, start, size)
            if start == self.length:
                return draft
            return draft_of(node_id, start, (1,) * size, (0.3,) * size)

    world = Deceived()
    world.play(200)
    assert 0.0 < stepped(world.forms) < 0.2
    assert stepped(world.forms[-50:]) < 0.15
