"""Plans rounds by the rules of a baseline; has the same calls as `Planner`."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import msgspec
from msgspec.structs import replace

from edgecosine.balance.baselines.batching import ByObjective, OneGroup
from edgecosine.balance.baselines.cosine_routing import CosineRouting
from edgecosine.balance.baselines.rules import (
    Baseline,
    CosinePaper,
    Similarity,
    SpecEdge,
    TargetAlone,
    equality,
)
from edgecosine.balance.plan import LONGEST_DEADLINE_S, MAX_NODES, Plan
from edgecosine.balance.request_state import RequestState
from edgecosine.balance.round import Round
from edgecosine.balance.statistics import Statistics
from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.fusion.fuse import DraftUnion, path_probabilities
from edgecosine.protocol.wire.tree import ROOT, TokenTree


class BaselinePlanner:
    """Its waits use no estimate of acceptance, only measured times of drafters and passes."""

    def __init__(self, statistics: Statistics, similarity: Similarity = equality) -> None:
        self._statistics = statistics
        self.routing = CosineRouting(statistics, similarity)

    def __repr__(self) -> str:
        return "<BaselinePlanner>"

    def is_plain(self, request: RequestState) -> bool:
        """Whether the next round has no drafts, whatever the drafters are."""
        return isinstance(request.policy.baseline, TargetAlone)

    def plan(self, request: RequestState, drafters: Collection[str], room: int) -> Plan:
        """The plan of the next round."""
        self._statistics.count_plan()
        rules = _rules(request)
        gamma, interval = min(rules.depth, room - 1), 0
        if isinstance(rules, CosinePaper):
            team, gamma = self.routing.plan(request, rules, sorted(drafters))
            gamma, interval = min(gamma, room - 1), 1
        else:
            team = rules.team(request.number, sorted(drafters))
        if not team or gamma < 1:
            return Plan(reason=f"K=0: {request.policy.name}")
        speeds = [self._statistics.drafter(node_id).speed for node_id in team]
        pieces = math.ceil(gamma / interval) if interval else 1
        return Plan(
            drafters=team,
            gamma=gamma,
            width=rules.width,
            interval=interval,
            draft_s=max(
                pieces * (speed.overhead_s or 0.0) + gamma * (speed.token_s or 0.0)
                for speed in speeds
            ),
            deadline_s=LONGEST_DEADLINE_S,
            reason=f"K={gamma}: {request.policy.name}",
        )

    def first_plan(self, request: RequestState, drafters: Collection[str], room: int) -> Plan:
        """The same drafters read the prompt while the target does."""
        return replace(self.plan(request, drafters, room), is_probe=True)

    def start_round(
        self, request: RequestState, plan: Plan, ahead: Sequence[DrafterTree] = ()
    ) -> Round:
        """The round of a plan; only SpecEdge verifies drafts made ahead."""
        rules = _rules(request)
        left = max((len(draft.chain()) for draft in ahead), default=0)
        is_ready = isinstance(rules, SpecEdge) and left > 0 and rules.is_reused(left, plan.gamma)
        return Round(plan, ahead, is_ready=is_ready or not plan.drafters)

    def fuse(
        self, request: RequestState, current: Round, room: int, waited_s: float = 0.0
    ) -> TokenTree:
        """The merged trees, each cut to the most probable nodes by its drafter's confidence."""
        budget = _rules(request).nodes
        trees = [_cut(draft, budget) for draft in current.drafts]
        union = DraftUnion(trees, [draft.tree.confidences for draft in trees])
        tree = union.tree(min(MAX_NODES, room))
        expected = 1.0 + sum(path_probabilities(tree))
        self._statistics.set_size(request, 1 + len(tree), expected)
        return tree

    def ahead(
        self, request: RequestState, drafters: Collection[str], plan: Plan, tree: TokenTree
    ) -> Plan:
        """SpecEdge's proactive drafting below the most probable leaf; of others an empty plan."""
        rules = _rules(request)
        asked = tuple(node_id for node_id in plan.drafters if node_id in drafters)
        if not isinstance(rules, SpecEdge) or not asked or not rules.proactive:
            return Plan()
        head = bytearray(1 + len(tree))
        head[1 + most_probable_leaf(tree)] = 255
        return Plan(
            drafters=asked,
            gamma=1 + rules.proactive,
            width=rules.width,
            shares={node_id: bytes(head) for node_id in asked},
            deadline_s=LONGEST_DEADLINE_S,
        )

    def probe(
        self,
        request: RequestState,
        drafters: Collection[str],
        plan: Plan,
        probed: Collection[str] = (),
    ) -> Plan:
        """Always empty."""
        return Plan()

    def batching(self, request: RequestState) -> OneGroup | ByObjective | None:
        """The rule by which a request shares passes."""
        rules = _rules(request)
        if isinstance(rules, SpecEdge) and rules.groups > 1:
            return OneGroup(request.number % rules.groups)
        return ByObjective(rules.weight) if isinstance(rules, CosinePaper) else None

    def observe_truth(
        self, request: RequestState, drafts: Sequence[DrafterTree], committed: Sequence[int]
    ) -> None:
        """Only CoSine's routing learns from verification results."""
        rules = _rules(request)
        if isinstance(rules, CosinePaper):
            self.routing.observe(request, rules, drafts, committed)


def most_probable_leaf(tree: TokenTree) -> int:
    """The leaf with the highest path probability; ROOT of an empty tree."""
    paths, inner = path_probabilities(tree), set(tree.parents)
    leaves = [node for node in range(len(tree)) if node not in inner]
    return max(leaves, key=lambda node: paths[node], default=ROOT)


def _rules(request: RequestState) -> Baseline:
    rules = request.policy.baseline
    assert rules is not None, "only requests of a baseline come here"
    return rules


def _cut(draft: DrafterTree, budget: int) -> DrafterTree:
    if len(draft) <= budget:
        return draft
    tree = DraftUnion([draft], [draft.tree.confidences]).tree(budget)
    return msgspec.structs.replace(draft, tree=tree)
