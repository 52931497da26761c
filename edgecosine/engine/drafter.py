"""The draft engine over a transformers model: grows many requests' guesses in each pass."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import cast

from edgecosine.engine.base import DraftWork, Proposal, never
from edgecosine.engine.growth import Growth
from edgecosine.engine.guessing import guess
from edgecosine.engine.model import PassModel
from edgecosine.engine.native import Kernels
from edgecosine.engine.rows import RowBuilder
from edgecosine.engine.slots import Slot, Slots
from edgecosine.protocol.messages import MAX_DRAFT_TOKENS, Coupling
from edgecosine.protocol.tree import ROOT

GUESSES = 4
"""Continuations that are kept of each node."""
TREE_ROOM = 128
"""Cells of a slot for nodes; a request whose growth has filled them is not explored further."""


PLAIN_NODES = 24
"""Nodes of an answer that somebody waits for."""


@dataclass(slots=True)
class _Drafting:
    """One work under way."""

    work: DraftWork
    slot: Slot
    growth: Growth
    laid: list[int]
    """Nodes of the verified tree that are still to be read."""
    num_steps: int = 0

    @property
    def pending(self) -> list[int]:
        """Tokens of the sequence that the cache lacks."""
        return list(self.work.tokens[len(self.slot.tokens) :])

    @property
    def is_done(self) -> bool:
        if not self.growth.is_root_read or self.laid:
            return False
        is_deep = self.work.ahead is None and self.growth.trunk_depth >= self.work.num_tokens
        return is_deep or self.num_steps >= self.work.num_tokens

    def next_nodes(self, deepest: int) -> list[int]:
        """Nodes to read in the next step: above the `deepest` level, as far as there is room."""
        room = TREE_ROOM - self.growth.num_read
        nodes, self.laid = self.laid or self.growth.most_probable(self.work.width), []
        chosen = [node for node in nodes if self.growth.nodes[node].depth < deepest][:room]
        if not chosen:
            self.num_steps = self.work.num_tokens
        return chosen

    def proposal(self) -> Proposal:
        """What is known now."""
        most = PLAIN_NODES if self.work.ahead is None else MAX_DRAFT_TOKENS
        return self.growth.proposal(most)


class TransformerDrafter:
    """Guesses by a causal LM; implements `DraftEngine`.

    Each slot of its cache holds a sequence and the nodes of its growth. What the target says is
    mostly among them, so that the next request finds its prefix there and much of its answer too.
    """

    def __init__(
        self,
        model: PassModel,
        *,
        slots: int,
        max_context: int,
        kernels: Kernels | None = None,
        chunk: int = 256,
    ) -> None:
        self._model, self._kernels = model, kernels
        self._slots = Slots(slots)
        self._growths: dict[int, tuple[Coupling, Growth]] = {}
        """By slot; below the sequence that the slot holds."""
        self._max_context = max_context
        self._chunk = chunk

    def draft(
        self, batch: Sequence[DraftWork], is_awaited: Callable[[], bool] = never
    ) -> list[Proposal]:
        """Propose tokens for every work; at most as many works as there are slots."""
        steps = self.steps(batch, is_awaited)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                return cast(list[Proposal], done.value)

    def steps(
        self, batch: Sequence[DraftWork], is_awaited: Callable[[], bool]
    ) -> Generator[int, None, list[Proposal]]:
        """`draft`, one step of the model at a time; yields each step's rows."""
        busy = {work.key for work in batch}
        draftings = [self._open(work, busy) for work in batch]
        while growing := [drafting for drafting in draftings if not drafting.is_done]:
            yield self._step(growing)
            if is_awaited() and all(drafting.work.ahead is not None for drafting in draftings):
                break
        return [drafting.proposal() for drafting in draftings]

    def release(self, key: str) -> None:
        """Give the request's slot back."""
        self._slots.release(key)

    def _open(self, work: DraftWork, busy: set[str]) -> _Drafting:
        slot = self._slots.acquire(work.key, work.tokens, busy)
        coupling, growth = self._growths.get(slot.index, (None, Growth(0)))
        is_current = coupling == work.coupling and growth.length == len(slot.tokens)
        if is_current:
            growth = self._follow(growth, slot, work.tokens)
        if not is_current or not growth.is_root_read:
            slot.keep(len(work.tokens) - 1)
            growth = Growth(len(work.tokens))
        self._growths[slot.index] = work.coupling, growth
        laid = growth.lay(work.ahead, work.shares) if work.ahead is not None else []
        return _Drafting(work, slot, growth, laid)

    def _follow(self, growth: Growth, slot: Slot, tokens: Sequence[int]) -> Growth:
        """Turn the nodes that `tokens` go through into tokens of the slot."""
        start = growth.length
        left, cells = growth.follow(tokens[start:])
        self._model.move(slot.index, cells, range(start, start + len(cells)))
        slot.tokens[start:] = tokens[start : left.length]
        return left

    def _step(self, growing: list[_Drafting]) -> int:
        """One pass: feed what each cache lacks, else read the most probable nodes. Its rows."""
        rows, keep, heads = RowBuilder(), list[int](), list[tuple[_Drafting, int]]()
        for drafting in growing:
            if pending := drafting.pending[: self._chunk]:
                rows.add_sequence(drafting.slot.index, len(drafting.slot.tokens), pending)
                drafting.slot.tokens.extend(pending)
                if not drafting.pending:
                    keep.append(len(rows) - 1)
                    heads.append((drafting, ROOT))
                continue
            for node in drafting.next_nodes(self._max_context - drafting.growth.length):
                path = drafting.growth.read(node)
                token = drafting.growth.nodes[node].token
                rows.add_node(drafting.slot.index, drafting.growth.length, token, path)
                keep.append(len(rows) - 1)
                heads.append((drafting, node))
            drafting.num_steps += 1
        if len(rows):
            self._guess(rows, keep, heads)
        return len(rows)

    def _guess(self, rows: RowBuilder, keep: list[int], heads: list[tuple[_Drafting, int]]) -> None:
        logits = self._model.forward(rows.build(), keep)
        positions = [_position(drafting.growth, node) for drafting, node in heads]
        couplings = [drafting.work.coupling for drafting, _ in heads]
        guesses = guess(logits, positions, couplings, GUESSES, self._kernels)
        for (drafting, node), found in zip(heads, guesses, strict=True):
            drafting.growth.add_guesses(node, found)


def _position(growth: Growth, node: int) -> int:
    """The position in the sequence that is guessed after a node."""
    return growth.length + (0 if node == ROOT else growth.nodes[node].depth)
