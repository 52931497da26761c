"""CoSine's routing scores, adaptive draft lengths and the cut over budget, request by request."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from edgecosine.balance.baselines.rules import (
    CosinePaper,
    Similarity,
    choose_team,
    cut_to_budget,
    equality,
    routing_score,
)
from edgecosine.balance.cost_model import smooth
from edgecosine.balance.request_state import RequestState
from edgecosine.balance.statistics import Statistics
from edgecosine.fusion.drafter_tree import DrafterTree


@dataclass(slots=True)
class _Routed:
    """What is known about one request."""

    scores: dict[str, float] = field(default_factory=dict)
    rounds: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    length: int = 0
    size: int = 0


class CosineRouting:
    """Routing of the active requests."""

    def __init__(self, known: Statistics, similarity: Similarity = equality) -> None:
        self._statistics, self._similarity = known, similarity
        self._requests: WeakKeyDictionary[RequestState, _Routed] = WeakKeyDictionary()

    def plan(
        self, request: RequestState, rules: CosinePaper, drafters: Sequence[str]
    ) -> tuple[tuple[str, ...], int]:
        """The drafters of the next round, and how many tokens each of them drafts."""
        routed = self._routed(request, rules)
        step = 1 if 1.0 - self._statistics.busy_share > rules.idle else -1
        routed.length = min(rules.depth, max(1, routed.length + step))
        routed.size = min(rules.team_size, max(1, routed.size + step))
        explores = (request.accepted or 0.0) < rules.threshold
        places = choose_team(
            [routed.scores.get(node_id, 0.0) for node_id in drafters],
            [routed.rounds[node_id] for node_id in drafters],
            rules.explore if explores else rules.exploit,
            routed.size,
        )
        lengths = {each: other.length for each, other in self._requests.items()}
        cut = dict(zip(lengths, cut_to_budget([*lengths.values()], rules.budget), strict=True))
        return tuple(drafters[place] for place in places), cut[request]

    def observe(
        self,
        request: RequestState,
        rules: CosinePaper,
        drafts: Sequence[DrafterTree],
        committed: Sequence[int],
    ) -> None:
        """Learn the scores of the drafters of a round from the tokens that the target committed."""
        routed = self._routed(request, rules)
        similarity = self._similarity if rules.embeds else equality
        confidences, similarities = (
            defaultdict[str, list[float]](list),
            defaultdict[str, list[float]](list),
        )
        for draft in drafts:
            chain = draft.chain()
            for depth in range(draft.trunk, len(chain)):
                confidences[draft.node_id].append(chain.tree.confidences[depth])
                at = draft.prefix_len + depth
                if at < len(committed):
                    alike = similarity(chain.tree.tokens[depth], committed[at])
                    similarities[draft.node_id].append(alike)
        for node_id, seen in confidences.items():
            routed.rounds[node_id] += 1
            if alike_ones := similarities[node_id]:
                score = routing_score(statistics.fmean(seen), statistics.fmean(alike_ones))
                former = routed.scores.get(node_id)
                routed.scores[node_id] = smooth(former, score, rules.memory)

    def _routed(self, request: RequestState, rules: CosinePaper) -> _Routed:
        routed = self._requests.get(request)
        if routed is None:
            routed = _Routed(length=(1 + rules.depth) // 2, size=rules.team_size)
            self._requests[request] = routed
        return routed
