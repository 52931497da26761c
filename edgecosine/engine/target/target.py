"""The target engine: one pass over prefill chunks, plain rows and trees, then the walk."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch

from edgecosine.engine.base import (
    FailedWork,
    Outcome,
    Prefilling,
    StepResult,
    VerificationResult,
    VerifyWork,
)
from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.kv_slots import KvSlot, KvSlots
from edgecosine.engine.sampling import draw, logprobs_of
from edgecosine.engine.target.acceptance import walk
from edgecosine.errors import NoLogits
from edgecosine.protocol.api.request import Logprobs
from edgecosine.protocol.wire.tree import EMPTY_TREE, ROOT


@dataclass(slots=True)
class _Part:
    """One work's rows in the pass."""

    work: VerifyWork
    slot: KvSlot
    fed: int
    """Committed tokens that this pass feeds."""
    remaining: int
    """Committed tokens that the next passes must feed."""
    first_logit: int = 0


class TransformerTarget:
    """Decides by a causal LM; implements `TargetEngine`.

    `eos_tokens` are the model's end tokens, which `Sampling.min_tokens` bans for a while, and
    `num_tokens` the rows of its embedding. A sequence of more than `turns_at` tokens is read anew,
    with its longrope's long factors.
    """

    def __init__(
        self,
        model: ForwardModel,
        *,
        slots: int,
        max_context: int,
        chunk: int = 64,
        eos_tokens: Collection[int] = (),
        num_tokens: int = 1 << 31,
        turns_at: int = 0,
    ) -> None:
        self._model, self._num_tokens, self._turns_at = model, num_tokens, turns_at
        self._eos_tokens = frozenset(eos_tokens)
        self._slots = KvSlots(slots, turns_at)
        self._bare: set[str] = set()
        """Sessions whose trees are left out until their next verdict."""
        self._max_context = max_context
        self._chunk = chunk

    @property
    def max_context(self) -> int:
        """Tokens that a sequence may have."""
        return self._max_context

    def step(self, batch: Sequence[VerifyWork]) -> StepResult:
        """Run one pass over all works and judge their trees."""
        busy = {work.key for work in batch}
        rows, keep, parts = RowBuilder(), list[int](), list[_Part | FailedWork]()
        try:
            for work in batch:
                parts.append(self._add(work, busy, rows, keep))
            logits = self._model.forward(rows.build(), keep) if len(rows) else torch.empty(0, 1)
        except BaseException:
            for part in parts:
                if isinstance(part, _Part):  # its cells may not be filled
                    part.slot.keep(len(part.slot.tokens) - part.fed)
            raise
        greedy = _most_probable(logits)
        outcomes = [
            part if isinstance(part, FailedWork) else self._outcome(part, logits, greedy)
            for part in parts
        ]
        return StepResult(outcomes, len(rows))

    def release(self, key: str) -> None:
        """Give the session's slot back."""
        self._slots.release(key)
        self._bare.discard(key)

    def _add(
        self, work: VerifyWork, busy: set[str], rows: RowBuilder, keep: list[int]
    ) -> _Part | FailedWork:
        deepest = len(work.tokens) + max(work.tree.depths, default=0)
        if work.key in self._bare or len(work.tokens) <= self._turns_at < deepest:
            work = replace(work, tree=EMPTY_TREE)
        slot = self._slots.acquire(work.key, work.tokens, busy)
        slot.keep(len(work.tokens) - 1)
        cached = len(slot.tokens)
        pending = work.tokens[cached : cached + self._chunk]
        # Kernels read and write where they are told to.
        if not all(0 <= token < self._num_tokens for token in (*pending, *work.tree.tokens)):
            return FailedWork(ValueError(f"a token is none of the model's {self._num_tokens}"))
        if len(work.tokens) + len(work.tree) > self._model.slot_size:
            return FailedWork(
                ValueError(f"the sequence needs more than {self._model.slot_size} cells")
            )
        rows.add_sequence(slot.index, cached, pending, slot.mark)
        slot.tokens.extend(pending)
        part = _Part(work, slot, len(pending), len(work.tokens) - cached - len(pending))
        if not part.remaining:
            part.first_logit = len(keep)
            keep.append(len(rows) - 1)
            keep.extend(range(len(rows), len(rows) + len(work.tree)))
            rows.add_tree(slot.index, len(work.tokens), work.tree, slot.mark)
        return part

    def _outcome(self, part: _Part, logits: torch.Tensor, greedy: list[int | None]) -> Outcome:
        if part.remaining:
            return Prefilling(part.remaining)
        try:
            return self._verify(part, logits, greedy)
        except NoLogits as error:
            part.slot.keep(0)
            self._model.clear(part.slot.index)
            if not len(part.work.tree):
                return FailedWork(error)
            # Where attention masks, a node without numbers takes them from its whole tree.
            self._bare.add(part.work.key)
            return Prefilling(len(part.work.tokens))
        except Exception as error:  # noqa: BLE001 -- it is this request's alone
            return FailedWork(error)

    def _verify(
        self, part: _Part, logits: torch.Tensor, greedy: list[int | None]
    ) -> VerificationResult:
        work, first = part.work, part.first_logit + 1
        prompt, answer = work.tokens[: work.num_prompt], work.tokens[work.num_prompt :]
        how, ends = work.sampling, self._eos_tokens.union(work.sampling.stop_token_ids)
        by_argmax = how.is_greedy and how.is_plain

        def token_after(node: int, accepted: list[int]) -> int:
            banned = ends if len(answer) + len(accepted) < how.min_tokens else ()
            most_probable = greedy[first + node]
            if most_probable is None:
                raise NoLogits
            if by_argmax and not banned:
                return most_probable
            position = len(work.tokens) + len(accepted)
            generated = [*answer, *accepted]
            return draw(logits[first + node], position, how, generated, prompt, banned)

        result = walk(work.tree, token_after)
        self._bare.discard(work.key)
        if work.top_logprobs is not None:
            rows = [logits[first + node] for node in (ROOT, *result.path)]
            result = replace(result, logprobs=_logprobs(work, result, rows))
        length = len(work.tokens)
        source = [length + node for node in result.path]
        self._model.move(part.slot.index, source, range(length, length + len(source)))
        part.slot.tokens.extend(work.tree.tokens[node] for node in result.path)
        return result


def _most_probable(logits: torch.Tensor) -> list[int | None]:
    """The token of each row's highest logit; None where there are no numbers to draw from."""
    tokens = torch.argmax(logits, dim=-1)
    # The highest of numbers with NaN or infinity among them, or of -infinity alone, is none.
    is_finite = logits.gather(1, tokens[:, None])[:, 0].isfinite()
    found: list[int] = torch.where(is_finite, tokens, -1).tolist()
    return [token if token >= 0 else None for token in found]


def _logprobs(
    work: VerifyWork, result: VerificationResult, rows: Sequence[torch.Tensor]
) -> tuple[Logprobs, ...]:
    """One for each committed token; `rows` are the logits that the tokens were drawn from."""
    tokens = [*(work.tree.tokens[node] for node in result.path), result.bonus]
    return tuple(
        logprobs_of(row, token, work.top_logprobs or 0)
        for row, token in zip(rows, tokens, strict=True)
    )


assert ROOT == -1, "token_after counts the root's logits as node -1"
