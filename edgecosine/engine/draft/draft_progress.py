"""The state of works while they are drafted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from edgecosine.engine.base import DraftResult, DraftWork
from edgecosine.engine.cpu.native_structs import CHILDREN
from edgecosine.engine.draft.draft_tree import DraftTree
from edgecosine.engine.kv_slots import KvSlot
from edgecosine.protocol.wire.messages import MAX_DRAFT_TOKENS
from edgecosine.protocol.wire.prompt_score import (
    MAX_SCORED_TOKENS,
    NO_PROMPT_SCORE,
    PromptScore,
)

TREE_ROOM = 256
"""KV positions of a slot for nodes; a tree that has used them is not explored further."""
PLAIN_NODES = 48
"""Nodes of a draft that the target waits for."""


@dataclass(slots=True)
class PromptReading:
    """The drafter's predictions of the tokens that it read, and their log-likelihood."""

    is_top1: list[bool] = field(default_factory=list)
    nll: float = 0.0
    """Sum of -log q over the tokens."""

    def add(self, is_top1: Iterable[bool], nll: float) -> None:
        """Count tokens, and the sum of -log q over them."""
        self.is_top1.extend(is_top1)
        self.nll += nll

    def prompt_score(self) -> PromptScore:
        count = len(self.is_top1)
        return PromptScore(tuple(self.is_top1), self.nll / count) if count else NO_PROMPT_SCORE


@dataclass(slots=True)
class DraftProgress:
    """The state of one work during `draft`."""

    work: DraftWork
    slot: KvSlot
    tree: DraftTree
    seeded: list[int]
    """Nodes of the verified tree that have not been read."""
    num_steps: int = 0
    prompt: PromptReading = field(default_factory=PromptReading)

    @property
    def pending(self) -> list[int]:
        """Tokens of the sequence that are not in the cache."""
        return list(self.work.tokens[len(self.slot.tokens) :])

    @property
    def num_pending(self) -> int:
        """Number of tokens of the sequence that are not in the cache."""
        return len(self.work.tokens) - len(self.slot.tokens)

    @property
    def num_scored(self) -> int:
        """Number of pending tokens whose predictions count in the prompt score."""
        return min(max(0, self.num_pending - 1), MAX_SCORED_TOKENS)

    def end_prefill(self) -> None:
        """Record that the cache holds the whole sequence, and the tree what follows it."""
        self.slot.tokens.extend(self.pending)
        self.tree.is_root_read = True

    @property
    def is_done(self) -> bool:
        if not self.tree.is_root_read or self.seeded:
            return False
        is_deep = self.work.ahead is None and self.tree.trunk_depth >= self.work.num_tokens
        return is_deep or self.num_steps >= self.most_steps

    @property
    def most_steps(self) -> int:
        """Steps after which the work is done."""
        return self.work.num_tokens

    def next_nodes(self, deepest: int) -> list[int]:
        """Nodes above the `deepest` level to read in the next step, as far as there is room."""
        tree = self.tree
        room = min(TREE_ROOM - tree.num_read, tree.room // CHILDREN)
        nodes, self.seeded = self.seeded or tree.most_probable(self.work.width), []
        chosen = [node for node in nodes if tree.nodes.depth[node] < deepest][: max(0, room)]
        if not chosen:
            self.num_steps = self.most_steps
        return chosen

    def proposal(self) -> DraftResult:
        """The draft as it is now."""
        most = PLAIN_NODES if self.work.ahead is None else MAX_DRAFT_TOKENS
        return replace(
            self.tree.proposal(most),
            prompt_score=self.prompt.prompt_score(),
            is_complete=self.is_done,
            num_steps=self.num_steps,
        )


@dataclass(frozen=True, slots=True)
class LogitRow:
    """A row of logits of a forward pass, and the node that it continues."""

    progress: DraftProgress
    node: int
    row: int


@dataclass(frozen=True, slots=True)
class ScoredPosition:
    """A token that was read: its position, and the row of logits that predicted it."""

    progress: DraftProgress
    position: int
    row: int
