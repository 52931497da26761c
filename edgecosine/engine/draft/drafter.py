"""The draft engine over a causal LM: each forward pass extends the trees of many requests."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator, Sequence
from typing import cast

import torch

from edgecosine.engine.base import DraftResult, DraftWork, never
from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.cpu.kernel_library import Kernels
from edgecosine.engine.cpu.native_llama import NativeLlama
from edgecosine.engine.cpu.native_structs import CHILDREN, MAX_NLL, NativeDraftWork
from edgecosine.engine.draft.draft_progress import (
    TREE_ROOM,
    DraftProgress,
    LogitRow,
    ScoredPosition,
)
from edgecosine.engine.draft.draft_sampling import (
    cuts_nothing,
    inverse_temperature,
    rank_draft_tokens,
    seed_of,
)
from edgecosine.engine.draft.draft_tree import DraftTree
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.kv_slots import KvSlot, KvSlots
from edgecosine.fusion.shared_noise import noise_seed
from edgecosine.protocol.wire.messages import SharedNoise
from edgecosine.protocol.wire.prompt_score import MAX_SCORED_TOKENS
from edgecosine.protocol.wire.tree import ROOT


class TransformerDrafter:
    """Drafts by a causal LM; implements `DraftEngine`.

    A slot holds a sequence and the nodes of its draft tree. The accepted tokens are mostly among
    the nodes, so the next request finds its prefix and much of its draft in the cache.
    """

    def __init__(
        self,
        model: ForwardModel,
        *,
        slots: int,
        max_context: int,
        kernels: Kernels | None = None,
        chunk: int = 256,
        switches_at: int = 0,
    ) -> None:
        self._model, self._kernels = model, kernels
        self._fused = model if isinstance(model, NativeLlama) else None
        self._slots = KvSlots(slots, self._copy, switches_at)
        self._trees: dict[int, tuple[SharedNoise, DraftTree]] = {}
        """The draft tree below the sequence of each slot, and the noise it was drawn with."""
        self._max_context = max_context
        self._chunk = chunk

    def draft(
        self, batch: Sequence[DraftWork], is_interrupted: Callable[[int], bool] = never
    ) -> list[DraftResult]:
        """Draft tokens for every work; at most as many works as there are slots."""
        steps = self.steps(batch, is_interrupted)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                return cast(list[DraftResult], done.value)

    def steps(
        self, batch: Sequence[DraftWork], is_interrupted: Callable[[int], bool]
    ) -> Generator[int, None, list[DraftResult]]:
        """`draft` one step at a time; yields the number of rows of each forward pass."""
        fits = [len(work.tokens) <= self._max_context for work in batch]
        works = [work for work, is_within in zip(batch, fits, strict=True) if is_within]
        busy = {work.key for work in works}
        try:
            all_progress = [self._open(work, busy) for work in works]
            while active := [progress for progress in all_progress if not progress.is_done]:
                is_native = self._is_native(active)
                yield self._native_step(active) if is_native else self._step(active)
                if is_interrupted(sum(progress.is_done for progress in all_progress)):
                    break
        except Exception:
            self._slots.empty(busy)
            raise
        drafts = iter([progress.proposal() for progress in all_progress])
        return [next(drafts) if is_within else DraftResult((), ()) for is_within in fits]

    def release(self, key: str) -> None:
        """Release the slot of the request."""
        self._slots.release(key)

    def _open(self, work: DraftWork, busy: set[str]) -> DraftProgress:
        slot = self._slots.acquire(work.key, work.tokens, busy)
        noise, tree = self._trees.get(slot.index, (None, DraftTree(0)))
        is_current = noise == work.noise and tree.length == len(slot.tokens)
        if is_current:
            tree = self._follow(tree, slot, work.tokens)
        if not is_current or not tree.is_root_read:
            slot.keep(len(work.tokens) - 1)
            tree = DraftTree(len(work.tokens))
        self._trees[slot.index] = work.noise, tree
        seeded = tree.seed_with(work.ahead, work.shares) if work.ahead is not None else []
        return DraftProgress(work, slot, tree, seeded, work.num_steps)

    def _copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy a prefix from slot to slot, over the nodes of the target's tree."""
        self._model.copy(source, target, start, end)
        self._trees.pop(target, None)

    def _follow(self, tree: DraftTree, slot: KvSlot, tokens: Sequence[int]) -> DraftTree:
        """Make the nodes that `tokens` follow tokens of the slot."""
        start = tree.length
        left, kv_positions = tree.follow(tokens[start:])
        self._model.move(slot.index, kv_positions, range(start, start + len(kv_positions)))
        slot.tokens[start:] = tokens[start : left.length]
        return left

    def _is_native(self, active: list[DraftProgress]) -> bool:
        """Whether the kernels can run the step: no long prefill, no truncated sampling."""
        return self._fused is not None and all(
            progress.num_pending <= self._chunk and cuts_nothing(progress.work.noise)
            for progress in active
        )

    def _native_step(self, active: list[DraftProgress]) -> int:
        """`_step` in one call of the kernels."""
        assert self._fused is not None
        works = (NativeDraftWork * len(active))(*map(self._native_work, active))
        rows = self._fused.draft_step(works)
        for progress, work in zip(active, works, strict=True):
            if work.num_pending:
                progress.end_prefill()
                progress.prompt.add(map(bool, work.is_top1[: work.num_scored]), work.nll)
            else:
                progress.seeded = []
                progress.num_steps += 1
                if not work.num_chosen:
                    progress.num_steps = progress.most_steps
        return rows

    def _native_work(self, progress: DraftProgress) -> NativeDraftWork:
        work, seeded, pending = progress.work, progress.seeded, progress.pending
        is_noisy, num_scored = not work.noise.is_greedy, progress.num_scored
        return NativeDraftWork(
            nodes=ctypes.pointer(progress.tree.nodes),
            seeded=(ctypes.c_int32 * len(seeded))(*seeded),
            pending=(ctypes.c_int32 * len(pending))(*pending),
            is_top1=(ctypes.c_uint8 * num_scored)(),
            noise_seed=noise_seed(seed_of(work.noise)) if is_noisy else 0,
            num_seeded=len(seeded),
            num_pending=len(pending),
            num_scored=num_scored,
            slot=progress.slot.index,
            width=work.width,
            room=TREE_ROOM,
            deepest=self._max_context - progress.tree.length,
            inverse_temperature=inverse_temperature(work.noise),
            is_noisy=is_noisy,
        )

    def _step(self, active: list[DraftProgress]) -> int:
        """Run one forward pass: prefill missing tokens, else read the most probable nodes.

        Returns the number of rows."""
        rows, logit_rows, scored = RowBuilder(), list[LogitRow](), list[ScoredPosition]()
        for progress in active:
            if pending := progress.pending[: self._chunk]:
                self._feed(progress, pending, rows, logit_rows, scored)
                continue
            progress.num_steps += 1
            for node in progress.next_nodes(self._max_context - progress.tree.length):
                path = progress.tree.read(node)
                token = progress.tree.nodes.token[node]
                rows.add_node(
                    progress.slot.index, progress.tree.length, token, path, progress.slot.mark
                )
                logit_rows.append(LogitRow(progress, node, len(rows) - 1))
        self._evaluate(rows, logit_rows, scored)
        return len(rows)

    def _evaluate(
        self, rows: RowBuilder, logit_rows: list[LogitRow], scored: list[ScoredPosition]
    ) -> None:
        if not len(rows):
            return
        keep = [row.row for row in logit_rows] + [token.row for token in scored]
        logits = self._model.forward(rows.build(), keep)
        self._add_children(logits[: len(logit_rows)], logit_rows)
        if scored:
            self._score(logits[len(logit_rows) :], scored)

    def _feed(
        self,
        progress: DraftProgress,
        pending: list[int],
        rows: RowBuilder,
        logit_rows: list[LogitRow],
        scored: list[ScoredPosition],
    ) -> None:
        """Add rows for tokens of the sequence; the newest ones are also scored."""
        slot, tokens = progress.slot, progress.work.tokens
        start, first_row = len(slot.tokens), len(rows)
        rows.add_sequence(slot.index, start, pending, slot.mark)
        slot.tokens.extend(pending)
        scored += (
            ScoredPosition(progress, position, first_row + position - start - 1)
            for position in range(
                max(start + 1, len(tokens) - MAX_SCORED_TOKENS),
                min(len(tokens), len(slot.tokens) + 1),
            )
        )
        if not progress.pending:
            logit_rows.append(LogitRow(progress, ROOT, len(rows) - 1))

    def _add_children(self, logits: torch.Tensor, logit_rows: list[LogitRow]) -> None:
        positions = [_next_position(row.progress.tree, row.node) for row in logit_rows]
        noises = [row.progress.work.noise for row in logit_rows]
        draft_tokens = rank_draft_tokens(logits, positions, noises, CHILDREN, self._kernels)
        for row, found in zip(logit_rows, draft_tokens, strict=True):
            row.progress.tree.add_children(row.node, found)

    def _score(self, logits: torch.Tensor, scored: list[ScoredPosition]) -> None:
        """Compare tokens of the sequence with the predictions of the model."""
        positions = [at.position for at in scored]
        noises = [at.progress.work.noise for at in scored]
        truth = [at.progress.work.tokens[at.position] for at in scored]
        draft_tokens = rank_draft_tokens(logits, positions, noises, 1, self._kernels)
        # On CPUs log_softmax takes a sixth of the time of logsumexp.
        places = torch.tensor(truth, device=logits.device)[:, None]
        nlls = (-torch.log_softmax(logits, 1).gather(1, places)[:, 0]).tolist()
        for at, token, found, nll in zip(scored, truth, draft_tokens, nlls, strict=True):
            at.progress.prompt.is_top1.append(found.tokens[0] == token)
            at.progress.prompt.nll += min(max(0.0, nll), MAX_NLL)


def _next_position(tree: DraftTree, node: int) -> int:
    """The position in the sequence of the tokens after a node."""
    return tree.length + (0 if node == ROOT else tree.nodes.depth[node])
