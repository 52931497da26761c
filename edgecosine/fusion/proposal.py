"""What a drafter proposes for one request, and how it is judged by what the target said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgecosine.protocol.wire.prompt_score import NO_PROMPT_SCORE, PromptScore
from edgecosine.protocol.wire.tree import ROOT


@dataclass(frozen=True, slots=True)
class Judged:
    """A proposed token whose parent is right, and whether it is."""

    confidence: float
    is_accepted: bool


@dataclass(frozen=True, slots=True)
class Proposal:
    """A tree after the first `prefix_len` tokens of a sequence, parents first, and siblings the
    most confident first; `parents` is empty for a chain."""

    node_id: str
    prefix_len: int
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    parents: tuple[int, ...] = ()
    hindsight: PromptScore = NO_PROMPT_SCORE
    """Of the newest of the `prefix_len` tokens."""
    trunk: int = 0
    """Its first tokens that are not its own: it goes on from what others said."""

    def __len__(self) -> int:
        return len(self.tokens)

    def parent(self, node: int) -> int:
        """Index of a node's parent, or ROOT."""
        return self.parents[node] if self.parents else node - 1

    def after(self, committed: Sequence[int]) -> Proposal | None:
        """What is left of it on longer committed text; None if it is wrong there or used up."""
        at = ROOT
        for token in committed[self.prefix_len :]:
            child = self._child(at, token)
            if child is None:
                return None
            at = child
        index, kept, parents = {at: ROOT}, list[int](), list[int]()
        for node, parent in enumerate(self._parents_from(at + 1), at + 1):
            above = index.get(parent)
            if above is not None:
                index[node] = len(kept)
                kept.append(node)
                parents.append(above)
        if not kept:
            return None
        return Proposal(
            self.node_id,
            len(committed),
            tuple([self.tokens[node] for node in kept]),
            tuple([self.confidences[node] for node in kept]),
            tuple(parents),
            trunk=max(0, self.trunk - len(committed) + self.prefix_len),
        )

    def own(self, committed: Sequence[int]) -> Proposal | None:
        """What it says itself; None where the trunk that it goes on from is wrong, or the text does
        not reach so far."""
        ends = self.prefix_len + self.trunk
        if not self.trunk:
            return self
        return self.after(committed[:ends]) if len(committed) >= ends else None

    def chain(self) -> Proposal:
        """Its best path alone, without siblings."""
        at, kept = ROOT, list[int]()
        while (below := next(self._children(at), None)) is not None:
            at = below
            kept.append(at)
        return Proposal(
            self.node_id,
            self.prefix_len,
            tuple(self.tokens[node] for node in kept),
            tuple(self.confidences[node] for node in kept),
            trunk=self.trunk,
        )

    def hits_and_misses(self, truth: Sequence[int]) -> tuple[int, int]:
        """Levels at which its best continuation was right, and the one where it was not.

        Nothing counts below a miss or where the truth ends: it was never asked. A proposal of
        nothing is a miss.
        """
        at, hits = ROOT, 0
        for token in truth:
            best = next(self._children(at), None)
            if best is None:
                return hits, 0 if hits else 1
            if self.tokens[best] != token:
                return hits, 1
            hits, at = hits + 1, best
        return hits, 0

    def judged(self, truth: Sequence[int]) -> list[Judged]:
        """Every node that the truth decides."""
        at, found = ROOT, list[Judged]()
        for token in truth:
            below = list(self._children(at))
            found += [Judged(self.confidences[n], self.tokens[n] == token) for n in below]
            right = [node for node in below if self.tokens[node] == token]
            if not right:
                break
            at = right[0]
        return found

    def covers(self, truth: Sequence[int]) -> int:
        """How many tokens of the truth it holds, one below the other."""
        at = ROOT
        for depth, token in enumerate(truth):
            child = self._child(at, token)
            if child is None:
                return depth
            at = child
        return len(truth)

    def _parents_from(self, first: int) -> Sequence[int]:
        return self.parents[first:] if self.parents else range(first - 1, len(self) - 1)

    def _children(self, at: int) -> Iterator[int]:
        node = at
        while True:
            try:
                node = self.parents.index(at, node + 1) if self.parents else node + 1
            except ValueError:
                return
            if node >= len(self):
                return
            yield node
            if not self.parents:
                return

    def _child(self, at: int, token: int) -> int | None:
        return next((node for node in self._children(at) if self.tokens[node] == token), None)
