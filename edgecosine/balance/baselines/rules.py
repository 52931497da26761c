"""The published systems that EdgeCoSine is compared with, as their constants and pure rules.

None of them probes drafters, calibrates confidences or learns rates. A constant that a publication
leaves open is a field here, and a constant in the name of a policy (`specedge:depth=7`).
Trees grow best first, which is at least as good as a static expansion of as many nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

MAX_DEPTH, MAX_WIDTH, MAX_NODES = 16, 8, 48

PassTime = Callable[[int], float]
"""Expected seconds of a pass by its rows."""
Similarity = Callable[[int, int], float]
"""How alike two tokens are, at most 1."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """Rounds in lock step: drafters grow trees, and the target verifies their union.

    depth, width, nodes  steps of a drafter, nodes that it reads in each, nodes that are verified

    Raises ValueError for a constant out of range.
    """

    depth: int = 5
    width: int = 4
    nodes: int = 32

    def __post_init__(self) -> None:
        limits = ((self.depth, MAX_DEPTH), (self.width, MAX_WIDTH), (self.nodes, MAX_NODES))
        if not all(1 <= value <= most for value, most in limits):
            raise ValueError(
                f"depth is 1 to {MAX_DEPTH}, width 1 to {MAX_WIDTH}, nodes 1 to {MAX_NODES}"
            )

    def team(self, number: int, drafters: Sequence[str]) -> tuple[str, ...]:
        """The drafters of the node's request `number`."""
        return tuple(drafters)


@dataclass(frozen=True, slots=True)
class TargetAlone(Baseline):
    """Plain decoding."""

    def team(self, number: int, drafters: Sequence[str]) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True, slots=True)
class Colocated(Baseline):
    """Tree speculation with one drafter, in lock step. The cluster's drafters are copies of one
    model, among which requests are shared out; on the target's machine there is one."""

    def team(self, number: int, drafters: Sequence[str]) -> tuple[str, ...]:
        return (drafters[number % len(drafters)],) if drafters else ()


@dataclass(frozen=True, slots=True)
class SpecInfer(Baseline):
    """SpecInfer (arXiv 2305.09781): every drafter's tree, merged without a cut.

    The paper expands trees statically, <1, 1, 3, 1, 1, 1, 1, 1>: depth 8, width 3, 20 nodes. Here
    `nodes` bounds each drafter's tree.
    """

    depth: int = 8
    width: int = 3
    nodes: int = 20


@dataclass(frozen=True, slots=True)
class SpecEdge(Colocated):
    """SpecEdge (arXiv 2505.17052): one drafter for a request, with a budgeted tree; proactive
    drafting after the most probable leaf; groups of requests whose passes alternate.

    proactive  steps beside a verification; the published code has 3
    groups     2 interleaves two groups, 1 verifies all requests together; the paper sets the depth
               so that drafting and round trip take as long as a pass
    """

    depth: int = 6
    width: int = 8
    proactive: int = 3
    groups: int = 2

    def __post_init__(self) -> None:
        Baseline.__post_init__(self)
        if not (0 <= self.proactive <= MAX_DEPTH and 1 <= self.groups <= 2):
            raise ValueError(f"proactive is 0 to {MAX_DEPTH}, groups 1 or 2")

    def is_reused(self, depth: int, wanted: int) -> bool:
        """Whether a proactive draft with `depth` levels left is verified as it is; else its drafter
        first continues it to `wanted` levels."""
        return depth >= min(wanted, self.proactive)


@dataclass(frozen=True, slots=True)
class CosinePaper(Baseline):
    """CoSine (arXiv 2503.10325), whose full text was not at hand: routing by confidence and
    similarity, fusion at every step, adaptive drafting, batch selection and the cut over budget.

    Left open by what is readable of the paper:
    threshold  accepted tokens of a round below which a request explores
    explore, exploit  weight of novelty 1 / sqrt(1 + rounds of the drafter) below and above it
    team_size  most drafters of a request; `depth` is the most draft tokens of a drafter
    memory     weight of a round in a routing score
    idle       share of time without a pass above which drafts grow, and below which they shrink
    budget     most draft tokens of all requests together
    weight     of latency against verified rows in the choice of a batch
    embeds     1 compares tokens by the cosine of their embeddings, 0 by equality. The paper does
               not name the embeddings: the simulation has the rows of the target's input
               embedding; a real target compares none, so there both values mean equality
    """

    depth: int = 8
    threshold: float = 2.0
    explore: float = 0.5
    exploit: float = 0.05
    team_size: int = 4
    memory: float = 0.3
    idle: float = 0.2
    budget: int = 128
    weight: float = 0.5
    embeds: int = 1

    def __post_init__(self) -> None:
        Baseline.__post_init__(self)
        shares = (self.explore, self.exploit, self.memory, self.idle, self.weight, self.embeds)
        if not (all(0 <= share <= 1 for share in shares) and 0 <= self.threshold <= MAX_DEPTH):
            raise ValueError(f"shares are 0 to 1, the threshold 0 to {MAX_DEPTH}")
        if not (1 <= self.team_size <= 64 and 1 <= self.budget <= 65_536):
            raise ValueError("team_size is 1 to 64, budget 1 to 65536")


def equality(token: int, other: int) -> float:
    """1 for the same token, else 0: the similarity without embeddings."""
    return float(token == other)


def routing_score(confidence: float, accuracy: float) -> float:
    """Harmonic mean of a drafter's mean confidence and of the mean similarity of its tokens to the
    accepted ones; 0 if either is not positive."""
    if confidence <= 0.0 or accuracy <= 0.0:
        return 0.0
    return 2 * confidence * accuracy / (confidence + accuracy)


def choose_team(
    scores: Sequence[float], rounds: Sequence[int], novelty: float, size: int
) -> list[int]:
    """The places of the `size` best drafters by score and novelty, the best first."""
    worth = [
        (1 - novelty) * score + novelty / (1 + count) ** 0.5
        for score, count in zip(scores, rounds, strict=True)
    ]
    return sorted(range(len(worth)), key=lambda place: -worth[place])[:size]


def cut_to_budget(lengths: Sequence[int], budget: int) -> list[int]:
    """Draft lengths whose sum is at most `budget`: the longest loses a token until it is."""
    cut = list(lengths)
    while sum(cut) > max(0, budget):
        cut[cut.index(max(cut))] -= 1
    return cut


def choose_batch(rows: Sequence[int], weight: float, pass_s: PassTime) -> list[int]:
    """The places of the works that the next pass verifies, those with the fewest rows first.

    It minimises weight * T(B) / |B| + (1 - weight) * T(B) / rows(B) for batches B, both over their
    values for a single row.
    """
    order = sorted(range(len(rows)), key=lambda place: rows[place])
    costs, total = list[float](), 0
    for size, place in enumerate(order, start=1):
        total += rows[place]
        costs.append(pass_s(total) * (weight / size + (1 - weight) / total))
    return order[: 1 + costs.index(min(costs))]
