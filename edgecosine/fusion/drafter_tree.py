"""One drafter's draft for a request, and its comparison with the tokens that the target commits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from edgecosine.protocol.wire.messages import MAX_DRAFT_TOKENS
from edgecosine.protocol.wire.prompt_score import NO_PROMPT_SCORE, PromptScore
from edgecosine.protocol.wire.tree import EMPTY_TREE, ROOT, TokenTree


class Comparison(msgspec.Struct, frozen=True):
    """A draft compared with the tokens that the target committed after its prefix.

    hits, misses  accepted tokens of the best path, and 1 if a rejection followed, else 0
    covered       committed tokens on a path from the root
    judged        confidence of each node whose parent was accepted, and whether it was accepted

    Tokens below a rejection, or beyond the end of the committed ones, do not count. An empty draft
    is a miss.
    """

    hits: int
    misses: int
    covered: int
    judged: Sequence[tuple[float, bool]]


class DrafterTree(msgspec.Struct, frozen=True):
    """A draft tree after the first `prefix_len` tokens of a sequence, siblings in falling order of
    confidence."""

    node_id: str
    prefix_len: int
    tree: TokenTree = EMPTY_TREE
    score: PromptScore = NO_PROMPT_SCORE
    """Of the newest of the `prefix_len` tokens."""
    trunk: int = 0
    """Number of its first tokens that come from other drafters' drafts, which it continues."""

    def __len__(self) -> int:
        return len(self.tree)

    def after(self, committed: Sequence[int], most: int = MAX_DRAFT_TOKENS) -> DrafterTree | None:
        """The first `most` nodes of the subtree below a longer committed text, which are the most
        probable ones of an honest draft; None if there are none."""
        at = ROOT
        for token in committed[self.prefix_len :]:
            child = self.tree.child(at, token)
            if child is None:
                return None
            at = child
        parents, kept, place_of = self.tree.parents, list[int](), {at: ROOT}
        for node in range(at + 1, len(parents)):
            if parents[node] in place_of:
                place_of[node] = len(kept)
                kept.append(node)
                if len(kept) == most:
                    break
        if not kept:
            return None
        trunk = max(0, self.trunk - len(committed) + self.prefix_len)
        tree = self._part(kept, [place_of[parents[node]] for node in kept])
        return DrafterTree(self.node_id, len(committed), tree, trunk=trunk)

    def own(self, committed: Sequence[int]) -> DrafterTree | None:
        """The part below the trunk; None if the committed text is shorter than the trunk or differs
        from it."""
        if not self.trunk:
            return self
        end = self.prefix_len + self.trunk
        return self.after(committed[:end]) if len(committed) >= end else None

    def chain(self, max_length: int | None = None) -> DrafterTree:
        """The best path, without siblings, of at most `max_length` tokens."""
        path = list[int]()
        at = self._best_child(ROOT)
        while at is not None:
            path.append(at)
            at = self._best_child(at)
        path = path[:max_length]
        tree = self._part(path, range(ROOT, len(path) - 1))
        return DrafterTree(self.node_id, self.prefix_len, tree, trunk=self.trunk)

    def below(self, trunk: DrafterTree) -> DrafterTree:
        """A chain drafted after the sequence and `trunk`, as a draft after the sequence alone."""
        tokens = (*trunk.tree.tokens, *self.tree.tokens)
        confidences = (*trunk.tree.confidences, *self.tree.confidences)
        parents = tuple(range(ROOT, len(tokens) - 1))
        tree = TokenTree(tokens, parents, confidences, (0,) * len(tokens))
        return DrafterTree(self.node_id, self.prefix_len - len(trunk), tree, trunk=len(trunk))

    def compare(self, truth: Sequence[int]) -> Comparison:
        """Compare the draft with the tokens that follow its prefix."""
        tree, at, judged = self.tree, ROOT, list[tuple[float, bool]]()
        hits = misses = covered = 0
        for token in truth:
            children = [*self._children(at)]
            judged += [(tree.confidences[node], tree.tokens[node] == token) for node in children]
            if not misses:
                if children and tree.tokens[children[0]] == token:
                    hits += 1
                elif children or not hits:
                    misses = 1
            child = tree.child(at, token)
            if child is None:
                break
            at, covered = child, covered + 1
        return Comparison(hits, misses, covered, judged)

    def _part(self, nodes: Sequence[int], parents: Sequence[int]) -> TokenTree:
        tokens, confidences = self.tree.tokens, self.tree.confidences
        return TokenTree(
            tokens=tuple([tokens[node] for node in nodes]),
            parents=tuple(parents),
            confidences=tuple([confidences[node] for node in nodes]),
            proposers=(0,) * len(nodes),
        )

    def _children(self, at: int) -> Iterator[int]:
        node = at
        while True:
            try:
                node = self.tree.parents.index(at, node + 1)
            except ValueError:
                return
            yield node

    def _best_child(self, at: int) -> int | None:
        return next(self._children(at), None)
