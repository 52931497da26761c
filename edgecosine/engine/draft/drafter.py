"""The draft engine over a transformers model: grows many requests' guesses in each pass."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch

from edgecosine.engine.base import DraftResult, DraftWork, never
from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.cpu.kernel_library import Kernels
from edgecosine.engine.cpu.native_llama import NativeLlama
from edgecosine.engine.draft.draft_sampling import cuts_nothing, guess, inverse_temperature, seed_of
from edgecosine.engine.draft.draft_tree import DraftTree, NativeDraftWork
from edgecosine.engine.forward_pass import PassModel
from edgecosine.engine.gumbel import noise_seed
from edgecosine.engine.kv_slots import KvSlot, KvSlots
from edgecosine.protocol.wire.messages import MAX_DRAFT_TOKENS, SharedNoise
from edgecosine.protocol.wire.prompt_score import MAX_SCORED_TOKENS, NO_PROMPT_SCORE, PromptScore
from edgecosine.protocol.wire.tree import ROOT

GUESSES = 4
"""Continuations that are kept of each node."""
TREE_ROOM = 256
"""Cells of a slot for nodes; a request whose growth has filled them is not explored further."""
MAX_NLL = 16.0
"""Nats that a token counts at most; those outside a shortlist would be infinite."""
PLAIN_NODES = 48
"""Nodes of an answer that somebody waits for."""


@dataclass(slots=True)
class PromptReading:
    """What a model would have said of tokens while it read them."""

    top1_matches: list[bool] = field(default_factory=list)
    nll: float = 0.0
    """Sum of -log q over them."""

    def hindsight(self) -> PromptScore:
        count = len(self.top1_matches)
        return PromptScore(tuple(self.top1_matches), self.nll / count) if count else NO_PROMPT_SCORE


@dataclass(slots=True)
class DraftProgress:
    """One work under way."""

    work: DraftWork
    slot: KvSlot
    growth: DraftTree
    laid: list[int]
    """Nodes of the verified tree that are still to be read."""
    num_steps: int = 0
    reading: PromptReading = field(default_factory=PromptReading)

    @property
    def pending(self) -> list[int]:
        """Tokens of the sequence that the cache lacks."""
        return list(self.work.tokens[len(self.slot.tokens) :])

    @property
    def is_done(self) -> bool:
        if not self.growth.is_root_read or self.laid:
            return False
        is_deep = self.work.ahead is None and self.growth.trunk_depth >= self.work.num_tokens
        return is_deep or self.num_steps >= self.most_steps

    @property
    def most_steps(self) -> int:
        """Steps of the model after which the work is done."""
        return self.work.num_tokens

    def next_nodes(self, deepest: int) -> list[int]:
        """Nodes to read in the next step: above the `deepest` level, as far as there is room."""
        growth = self.growth
        room = min(TREE_ROOM - growth.num_read, growth.room // GUESSES)
        nodes, self.laid = self.laid or growth.most_probable(self.work.width), []
        chosen = [node for node in nodes if growth.nodes.depth[node] < deepest][: max(0, room)]
        if not chosen:
            self.num_steps = self.most_steps
        return chosen

    def proposal(self) -> DraftResult:
        """What is known now."""
        most = PLAIN_NODES if self.work.ahead is None else MAX_DRAFT_TOKENS
        return replace(self.growth.proposal(most), hindsight=self.reading.hindsight())


@dataclass(frozen=True, slots=True)
class LogitRow:
    """A node whose continuations a pass tells, and the pass' row for it."""

    drafting: DraftProgress
    node: int
    row: int


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A token that was read, by its place in the sequence, and the row of the one before it."""

    drafting: DraftProgress
    position: int
    row: int


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
        turns_at: int = 0,
    ) -> None:
        self._model, self._kernels = model, kernels
        self._fused = model if isinstance(model, NativeLlama) else None
        self._slots = KvSlots(slots, turns_at)
        self._growths: dict[int, tuple[SharedNoise, DraftTree]] = {}
        """By slot; below the sequence that the slot holds."""
        self._max_context = max_context
        self._chunk = chunk

    def draft(
        self, batch: Sequence[DraftWork], is_awaited: Callable[[], bool] = never
    ) -> list[DraftResult]:
        """Propose tokens for every work; at most as many works as there are slots."""
        steps = self.steps(batch, is_awaited)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                return cast(list[DraftResult], done.value)

    def steps(
        self, batch: Sequence[DraftWork], is_awaited: Callable[[], bool]
    ) -> Generator[int, None, list[DraftResult]]:
        """`draft`, one step of the model at a time; yields each step's rows."""
        fits = [len(work.tokens) <= self._max_context for work in batch]
        works = [work for work, is_within in zip(batch, fits, strict=True) if is_within]
        busy = {work.key for work in works}
        try:
            draftings = [self._open(work, busy) for work in works]
            while growing := [drafting for drafting in draftings if not drafting.is_done]:
                is_native = self._is_native(growing)
                yield self._native_step(growing) if is_native else self._step(growing)
                if is_awaited() and all(drafting.work.ahead is not None for drafting in draftings):
                    break
        except Exception:
            self._slots.empty(busy)
            raise
        made = iter([drafting.proposal() for drafting in draftings])
        return [next(made) if is_within else DraftResult((), ()) for is_within in fits]

    def release(self, key: str) -> None:
        """Give the request's slot back."""
        self._slots.release(key)

    def _open(self, work: DraftWork, busy: set[str]) -> DraftProgress:
        slot = self._slots.acquire(work.key, work.tokens, busy)
        coupling, growth = self._growths.get(slot.index, (None, DraftTree(0)))
        is_current = coupling == work.coupling and growth.length == len(slot.tokens)
        if is_current:
            growth = self._follow(growth, slot, work.tokens)
        if not is_current or not growth.is_root_read:
            slot.keep(len(work.tokens) - 1)
            growth = DraftTree(len(work.tokens))
        self._growths[slot.index] = work.coupling, growth
        laid = growth.lay(work.ahead, work.shares) if work.ahead is not None else []
        return DraftProgress(work, slot, growth, laid)

    def _follow(self, growth: DraftTree, slot: KvSlot, tokens: Sequence[int]) -> DraftTree:
        """Turn the nodes that `tokens` go through into tokens of the slot."""
        start = growth.length
        left, cells = growth.follow(tokens[start:])
        self._model.move(slot.index, cells, range(start, start + len(cells)))
        slot.tokens[start:] = tokens[start : left.length]
        return left

    def _is_native(self, growing: list[DraftProgress]) -> bool:
        """Whether the kernels can do a whole step: nothing is to be fed, all tokens are ranked."""
        return self._fused is not None and all(
            len(drafting.slot.tokens) == len(drafting.work.tokens)
            and cuts_nothing(drafting.work.coupling)
            for drafting in growing
        )

    def _native_step(self, growing: list[DraftProgress]) -> int:
        """`_step` without Python between the choice of the nodes and their guesses."""
        assert self._fused is not None
        works = (NativeDraftWork * len(growing))(*map(self._growing, growing))
        rows = self._fused.grow(works)
        for drafting, work in zip(growing, works, strict=True):
            drafting.laid = []
            drafting.num_steps = drafting.num_steps + 1 if work.num_chosen else drafting.most_steps
        return rows

    def _growing(self, drafting: DraftProgress) -> NativeDraftWork:
        work, laid = drafting.work, drafting.laid
        is_noisy = not work.coupling.is_greedy
        return NativeDraftWork(
            nodes=ctypes.pointer(drafting.growth.nodes),
            laid=(ctypes.c_int32 * len(laid))(*laid),
            noise_seed=noise_seed(seed_of(work.coupling)) if is_noisy else 0,
            num_laid=len(laid),
            slot=drafting.slot.index,
            width=work.width,
            room=TREE_ROOM,
            deepest=self._max_context - drafting.growth.length,
            inverse_temperature=inverse_temperature(work.coupling),
            is_noisy=is_noisy,
        )

    def _step(self, growing: list[DraftProgress]) -> int:
        """One pass: feed what each cache lacks, else read the most probable nodes. Its rows."""
        rows, heads, told = RowBuilder(), list[LogitRow](), list[ScoredRow]()
        for drafting in growing:
            if pending := drafting.pending[: self._chunk]:
                self._feed(drafting, pending, rows, heads, told)
                continue
            for node in drafting.next_nodes(self._max_context - drafting.growth.length):
                path = drafting.growth.read(node)
                token = drafting.growth.nodes.token[node]
                rows.add_node(
                    drafting.slot.index, drafting.growth.length, token, path, drafting.slot.mark
                )
                heads.append(LogitRow(drafting, node, len(rows) - 1))
            drafting.num_steps += 1
        self._evaluate(rows, heads, told)
        return len(rows)

    def _evaluate(self, rows: RowBuilder, heads: list[LogitRow], told: list[ScoredRow]) -> None:
        if not len(rows):
            return
        keep = [head.row for head in heads] + [token.row for token in told]
        logits = self._model.forward(rows.build(), keep)
        self._guess(logits[: len(heads)], heads)
        if told:
            self._look_back(logits[len(heads) :], told)

    def _feed(
        self,
        drafting: DraftProgress,
        pending: list[int],
        rows: RowBuilder,
        heads: list[LogitRow],
        told: list[ScoredRow],
    ) -> None:
        """Rows for tokens of the sequence; of the newest that follow another one the model also
        says whether it would have guessed them."""
        slot, tokens = drafting.slot, drafting.work.tokens
        start, first_row = len(slot.tokens), len(rows)
        rows.add_sequence(slot.index, start, pending, slot.mark)
        slot.tokens.extend(pending)
        told += (
            ScoredRow(drafting, position, first_row + position - start - 1)
            for position in range(
                max(start + 1, len(tokens) - MAX_SCORED_TOKENS),
                min(len(tokens), len(slot.tokens) + 1),
            )
        )
        if not drafting.pending:
            heads.append(LogitRow(drafting, ROOT, len(rows) - 1))

    def _guess(self, logits: torch.Tensor, heads: list[LogitRow]) -> None:
        positions = [_position(head.drafting.growth, head.node) for head in heads]
        couplings = [head.drafting.work.coupling for head in heads]
        guesses = guess(logits, positions, couplings, GUESSES, self._kernels)
        for head, found in zip(heads, guesses, strict=True):
            head.drafting.growth.add_guesses(head.node, found)

    def _look_back(self, logits: torch.Tensor, told: list[ScoredRow]) -> None:
        """Compare what the model says of tokens with what they are."""
        positions = [at.position for at in told]
        couplings = [at.drafting.work.coupling for at in told]
        truth = [at.drafting.work.tokens[at.position] for at in told]
        guesses = guess(logits, positions, couplings, 1, self._kernels)
        of_truth = logits.gather(1, torch.tensor(truth, device=logits.device)[:, None])[:, 0]
        surprises = (torch.logsumexp(logits, 1) - of_truth).tolist()
        for at, token, found, surprise in zip(told, truth, guesses, surprises, strict=True):
            at.drafting.reading.top1_matches.append(found.tokens[0] == token)
            at.drafting.reading.nll += min(max(0.0, surprise), MAX_NLL)


def _position(growth: DraftTree, node: int) -> int:
    """The position in the sequence that is guessed after a node."""
    return growth.length + (0 if node == ROOT else growth.nodes.depth[node])
