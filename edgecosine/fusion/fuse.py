"""Fuses several drafts into one token tree.

The union of all drafts on shared prefixes is cut to a node budget by path probability. Where k
drafters propose the same token they count as independent witnesses: the token is accepted with
probability 1 - prod(1 - p_i).
"""

from __future__ import annotations

from collections.abc import Sequence

from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.protocol.wire.tree import EMPTY_TREE, ROOT, TokenTree

_MAX_PROBABILITY = 0.999


class DraftUnion:
    """The union of drafts on shared prefixes.

    `probabilities` holds, for each draft, the calibrated probability of each token given that its
    parent is accepted. A draft has no evidence about its trunk, so it adds no probability there.
    `own` is the target's own draft, whose confidences are such probabilities.
    """

    def __init__(
        self,
        drafts: Sequence[DrafterTree],
        probabilities: Sequence[Sequence[float]],
        own: TokenTree = EMPTY_TREE,
    ) -> None:
        self._num_drafts = len(drafts)
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._rejected: list[float] = []
        """prod(1 - p_i) over the drafters that propose a node."""
        self._proposers: list[int] = []
        self._index: dict[tuple[int, int], int] = {}
        for bit, (draft, chances) in enumerate(zip(drafts, probabilities, strict=True)):
            self._merge(draft.tree, _bounded(chances), [1 << bit] * len(draft), draft.trunk)
        self._merge(own, _bounded(own.confidences), [n << len(drafts) for n in own.proposers])
        size = len(self._tokens)
        paths = [1.0] * (size + 1)  # the last place, which ROOT indexes, is the root's
        for node, (parent, rejected) in enumerate(zip(self._parents, self._rejected, strict=True)):
            paths[node] = paths[parent] * (1.0 - rejected)
        self._ranked = sorted(range(size), key=paths.__getitem__, reverse=True)
        self.path_probabilities = [paths[node] for node in self._ranked]
        """Probability that each node is accepted, in falling order. A child is never more probable
        than its parent, and never listed before it, so any cut keeps whole paths."""

    @property
    def leaf_mass(self) -> float:
        """Probability that the accepted path reaches a leaf of the drafts, below which drafters
        have drafted nothing; the target's own draft does not count."""
        drafted = (1 << self._num_drafts) - 1
        inner = {
            p for p, each in zip(self._parents, self._proposers, strict=True) if each & drafted
        }
        return sum(
            [
                path
                for node, path in zip(self._ranked, self.path_probabilities, strict=True)
                if node not in inner and self._proposers[node] & drafted
            ]
        )

    def _merge(
        self, tree: TokenTree, chances: Sequence[float], bits: Sequence[int], trunk: int = 0
    ) -> None:
        if not (self._tokens or trunk):
            self._begin(tree, chances, bits)
            return
        nodes = list[int]()
        index, proposers, rejected = self._index, self._proposers, self._rejected
        for number, (token, probability, above, bit) in enumerate(
            zip(tree.tokens, chances, tree.parents, bits, strict=True)
        ):
            parent = ROOT if above == ROOT else nodes[above]
            node = index.get((parent, token))
            if node is None:
                node = index[parent, token] = len(rejected)
                self._tokens.append(token)
                self._parents.append(parent)
                rejected.append(1.0)
                proposers.append(0)
            if number >= trunk:
                rejected[node] *= 1.0 - probability
                proposers[node] |= bit
            nodes.append(node)

    def _begin(self, tree: TokenTree, chances: Sequence[float], bits: Sequence[int]) -> None:
        """Take a draft over as it is, as the first one."""
        self._tokens, self._parents = [*tree.tokens], [*tree.parents]
        self._rejected = [1.0 - probability for probability in chances]
        self._proposers = [*bits]
        nodes = zip(self._parents, self._tokens, strict=True)
        self._index = dict(zip(nodes, range(len(tree)), strict=True))

    def tree(self, budget: int) -> TokenTree:
        """The tree of the `budget` most probable nodes; bit i of `proposers` is drafts[i], and the
        bits behind those are of the target's own draft."""
        chosen = self._ranked[: max(0, budget)]
        place_of = {node: place for place, node in enumerate(chosen)}
        return TokenTree(
            tokens=tuple([self._tokens[node] for node in chosen]),
            parents=tuple([place_of.get(self._parents[node], ROOT) for node in chosen]),
            confidences=tuple([1.0 - self._rejected[node] for node in chosen]),
            proposers=tuple([self._proposers[node] for node in chosen]),
        )


def _bounded(chances: Sequence[float]) -> Sequence[float]:
    """The probabilities, none above the highest one; mostly all are below it."""
    if max(chances, default=0.0) <= _MAX_PROBABILITY:
        return chances
    return [min(probability, _MAX_PROBABILITY) for probability in chances]


def path_probabilities(tree: TokenTree) -> list[float]:
    """Probability that each node of a tree is accepted, by node."""
    found: list[float] = []
    for parent, confidence in zip(tree.parents, tree.confidences, strict=True):
        found.append(confidence if parent == ROOT else found[parent] * confidence)
    return found
