"""The engine of a committee's member: lists rows for a coordinator that draws from the mixture.

The accepted path arrives with the next prefix. Until then the engine keeps each tree, whose keys
and values are in the cache, and its rows, of which the coordinator may need more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from edgecosine.engine.base import (
    JudgeWork,
    RowLists,
    VerificationResult,
    VerifyWork,
    Wanted,
)
from edgecosine.engine.kv_slots import KvSlot
from edgecosine.engine.target.row_lists import list_rows
from edgecosine.engine.target.target import Part, TransformerTarget
from edgecosine.errors import NoLogits
from edgecosine.protocol.wire.tree import ROOT

MAX_ROW_BYTES: Final = 256 << 20
"""Bytes of the rows that are kept for further questions; the latest work's are kept in any case."""


@dataclass(frozen=True, slots=True)
class _Judged:
    """A judged work, when it got the slot that holds its tree, and its rows [root and nodes,
    vocabulary]."""

    work: JudgeWork
    taken: int
    rows: torch.Tensor

    def position(self, node: int) -> int:
        """The position of the token that is drawn at a node."""
        return len(self.work.tokens) + (0 if node == ROOT else self.work.tree.depths[node])


class TransformerMember(TransformerTarget):
    """Verifies drafts, and lists rows for `JudgeWork`s; implements `MemberEngine`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._judged: OrderedDict[str, _Judged] = OrderedDict()
        """The latest one by key, oldest first."""

    def reveal(self, key: str, node: int, wanted: Wanted) -> RowLists | None:
        """More about one row of the latest judged work of `key`, with its noise; None if the row
        is not kept."""
        judged = self._judged.get(key)
        if judged is None or not ROOT <= node < len(judged.rows) - 1:
            return None
        wanted = replace(wanted, noise=judged.work.wanted.noise)
        return list_rows(judged.rows[node + 1 : node + 2], [judged.position(node)], wanted)

    def release(self, key: str) -> None:
        """Release the slot of the session, and its rows."""
        super().release(key)
        self._judged.pop(key, None)

    def _acquire(self, work: VerifyWork, busy: Collection[str]) -> KvSlot:
        if (judged := self._judged.pop(work.key, None)) is not None:
            self._accept(judged, work, busy)
        return super()._acquire(work, busy)

    def _accept(self, judged: _Judged, work: VerifyWork, busy: Collection[str]) -> None:
        """Keep the keys and values of the path that the new prefix takes through the last tree."""
        slot = self._slots.acquire(work.key, work.tokens, busy, copies=False)
        length = len(judged.work.tokens)
        if slot.taken != judged.taken or len(slot.tokens) != length:
            return
        tree, node, path = judged.work.tree, ROOT, list[int]()
        for token in work.tokens[length:]:
            child = tree.child(node, token)
            if child is None:
                break
            node = child
            path.append(child)
        source = [length + node for node in path]
        self._model.move(slot.index, source, range(length, length + len(path)))
        slot.tokens.extend(tree.tokens[node] for node in path)

    def _reads_logits(self, work: VerifyWork) -> bool:
        return isinstance(work, JudgeWork) or super()._reads_logits(work)

    def _verify(
        self, part: Part, logits: torch.Tensor, greedy: list[int | None]
    ) -> VerificationResult | RowLists:
        work, first = part.work, part.first_logit
        if not isinstance(work, JudgeWork):
            return super()._verify(part, logits, greedy)
        end = first + 1 + len(work.tree)
        if None in greedy[first:end]:
            raise NoLogits
        self._without_trees.discard(work.key)
        judged = _Judged(work, part.slot.taken, logits[first:end].clone())
        self._judged[work.key] = judged
        self._forget_rows()
        positions = [judged.position(node) for node in range(ROOT, len(work.tree))]
        return list_rows(judged.rows, positions, work.wanted)

    def _forget_rows(self) -> None:
        num_bytes = sum(judged.rows.nbytes for judged in self._judged.values())
        while num_bytes > MAX_ROW_BYTES and len(self._judged) > 1:
            _, oldest = self._judged.popitem(last=False)
            num_bytes -= oldest.rows.nbytes
