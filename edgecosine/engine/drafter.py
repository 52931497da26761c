"""The draft engine over a transformers model: many requests batched in each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgecosine.engine.base import DraftWork, Proposal
from edgecosine.engine.model import PassModel
from edgecosine.engine.rows import RowBuilder
from edgecosine.engine.sampling import guess
from edgecosine.engine.slots import Slot, Slots


@dataclass(slots=True)
class _Growing:
    """A draft on its way: a trunk of best guesses, and their siblings when the width is above 1."""

    work: DraftWork
    slot: Slot
    trunk: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    last: int = -1

    @property
    def is_done(self) -> bool:
        return len(self.trunk) >= self.work.num_tokens

    def extend(self, tokens: list[int], confidences: list[float]) -> None:
        parent = self.last
        self.last = len(self.tokens)
        self.trunk.append(tokens[0])
        self.tokens += tokens
        self.confidences += confidences
        self.parents += [parent] * len(tokens)

    def proposal(self) -> Proposal:
        is_chain = self.work.width == 1
        parents = () if is_chain else tuple(self.parents)
        return Proposal(tuple(self.tokens), tuple(self.confidences), parents)


class TransformerDrafter:
    """Guesses by a causal LM; implements `DraftEngine`.

    Its cache holds the prefix and the trunk of the last draft, so that what the target accepted
    of it is there already when the next request comes.
    """

    def __init__(self, model: PassModel, *, slots: int, max_context: int, chunk: int = 256) -> None:
        self._model = model
        self._slots = Slots(slots)
        self._max_context = max_context
        self._chunk = chunk

    def draft(self, batch: Sequence[DraftWork]) -> list[Proposal]:
        """Propose tokens for every work; at most as many works as there are slots."""
        busy = {work.key for work in batch}
        drafts = [self._open(work, busy) for work in batch]
        while growing := [draft for draft in drafts if not draft.is_done]:
            self._grow(growing)
        return [draft.proposal() for draft in drafts]

    def release(self, key: str) -> None:
        """Give the request's slot back."""
        self._slots.release(key)

    def _open(self, work: DraftWork, busy: set[str]) -> _Growing:
        room = self._max_context - len(work.tokens)
        if room < work.num_tokens:
            work = DraftWork(work.key, work.tokens, max(0, room), work.width, work.coupling)
        slot = self._slots.acquire(work.key, work.tokens, busy)
        slot.keep(len(work.tokens) - 1)
        return _Growing(work, slot)

    def _grow(self, growing: list[_Growing]) -> None:
        """One pass: feed what each cache lacks, and take the next guess where nothing does."""
        rows, keep, ready = RowBuilder(), list[int](), list[_Growing]()
        for draft in growing:
            sequence, cached = (
                [*draft.work.tokens, *draft.trunk],
                len(draft.slot.tokens),
            )
            pending = sequence[cached : cached + self._chunk]
            rows.add_sequence(draft.slot.index, cached, pending)
            draft.slot.tokens.extend(pending)
            if cached + len(pending) == len(sequence):
                keep.append(len(rows) - 1)
                ready.append(draft)
        logits = self._model.forward(rows.build(), keep)
        for draft, row in zip(ready, logits, strict=True):
            position = len(draft.work.tokens) + len(draft.trunk)
            draft.extend(*guess(row, position, draft.work.coupling, draft.work.width))
