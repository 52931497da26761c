"""The target engine: a forward pass over prefill chunks and token trees, then verification."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from msgspec.structs import replace

from edgecosine.engine.base import (
    FailedWork,
    KvUse,
    Outcome,
    Prefilling,
    RowLists,
    StepResult,
    VerificationResult,
    VerifyWork,
)
from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.cpu.native_llama import NativeLlama
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.kv_slots import BLOCK, KvSlot, KvSlots
from edgecosine.engine.sampling import draw, logprobs_of
from edgecosine.engine.target.acceptance import walk
from edgecosine.errors import NoLogits
from edgecosine.protocol.api.request import Logprobs
from edgecosine.protocol.wire.tree import EMPTY_TREE, ROOT

_NO_LOGITS = torch.empty(0, 1)


@dataclass(slots=True)
class Part:
    """The rows of one work in the forward pass."""

    work: VerifyWork
    slot: KvSlot
    fed: int
    """Committed tokens in this forward pass."""
    remaining: int
    """Committed tokens left for the next forward passes."""
    first_logit: int = 0
    first_score: int = 0
    num_scores: int = 0
    """Rows whose next token is scored."""


class TransformerTarget:
    """Verifies drafts by a causal LM; implements `TargetEngine`.

    `eos_tokens` are the end tokens, which are banned before `Sampling.min_tokens`; `num_tokens` is
    the number of rows of the embedding. A sequence that exceeds `switches_at` tokens is prefilled
    again, with the long factors of its longrope.
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
        switches_at: int = 0,
    ) -> None:
        self._fused = model if isinstance(model, NativeLlama) else None
        self._model, self._num_tokens, self._switches_at = model, num_tokens, switches_at
        self._eos_tokens = frozenset(eos_tokens)
        self._slots = KvSlots(slots, model.copy, switches_at)
        self._without_trees: set[str] = set()
        """Sessions whose trees are left out until their next verification result."""
        self._prompt_logprobs: dict[str, list[Logprobs]] = {}
        """Of the prompts that are being scored, by session."""
        self._max_context = max_context
        self._chunk = chunk

    @property
    def max_context(self) -> int:
        """Most tokens of a sequence."""
        return self._max_context

    @property
    def kv_use(self) -> KvUse:
        """The use of the KV cache."""
        return KvUse(
            num_used=self._slots.num_tokens,
            capacity=len(self._slots) * self._model.slot_size,
            num_looked_up=self._slots.num_looked_up,
            num_found=self._slots.num_found,
        )

    def step(self, batch: Sequence[VerifyWork]) -> StepResult:
        """Run one forward pass over all works and verify their trees."""
        busy = {work.key for work in batch}
        rows, keep, parts = RowBuilder(), list[int](), list[Part | FailedWork]()
        try:
            slots = [self._acquire(work, busy) for work in batch]
            for work, slot in zip(batch, slots, strict=True):
                is_awaited = self._is_awaited(work, slot, parts)
                parts.append(_wait(work, slot) if is_awaited else self._add(work, slot, rows, keep))
            logits, greedy = self._run(rows, keep, batch)
        except BaseException:
            for part in parts:
                if isinstance(part, Part):  # its KV positions may be undefined
                    part.slot.keep(len(part.slot.tokens) - part.fed)
            raise
        outcomes = [
            part if isinstance(part, FailedWork) else self._outcome(part, logits, greedy)
            for part in parts
        ]
        return StepResult(outcomes, len(rows))

    def _run(
        self, rows: RowBuilder, keep: Sequence[int], batch: Sequence[VerifyWork]
    ) -> tuple[torch.Tensor, list[int | None]]:
        """The logits of the rows in `keep`, none where no work reads them, and the most probable
        tokens."""
        if self._fused is not None and not any(map(self._reads_logits, batch)):
            found = self._fused.most_probable(rows.columns(), keep) if len(rows) else []
            return _NO_LOGITS, [token if token >= 0 else None for token in found]
        logits = self._model.forward(rows.build(), keep) if len(rows) else _NO_LOGITS
        return logits, _most_probable(logits)

    def _reads_logits(self, work: VerifyWork) -> bool:
        """Whether more of the logits is read than which one is the highest."""
        how = work.sampling
        return not (
            how.is_greedy
            and how.is_plain
            and work.top_logprobs is None
            and work.constraint is None
            and not work.scores_prompt
            and len(work.tokens) - work.num_prompt >= how.min_tokens
        )

    def release(self, key: str) -> None:
        """Release the slot of the session."""
        self._slots.release(key)
        self._without_trees.discard(key)
        self._prompt_logprobs.pop(key, None)

    def _acquire(self, work: VerifyWork, busy: Collection[str]) -> KvSlot:
        """The work's slot, with all that any slot holds of its tokens but the last."""
        slot = self._slots.acquire(work.key, work.tokens, busy, copies=not work.scores_prompt)
        slot.keep(len(work.tokens) - 1)
        return slot

    def _is_awaited(
        self, work: VerifyWork, slot: KvSlot, parts: Sequence[Part | FailedWork]
    ) -> bool:
        """Whether another part of the pass reads the tokens that the work lacks: the next pass
        copies them."""
        start = len(slot.tokens)
        if work.scores_prompt or len(work.tokens) - start <= BLOCK:
            return False
        return any(
            isinstance(part, Part)
            and part.fed >= BLOCK
            and part.slot.shared(work.tokens, slot.mark) >= start + BLOCK
            for part in parts
        )

    def _add(
        self, work: VerifyWork, slot: KvSlot, rows: RowBuilder, keep: list[int]
    ) -> Part | FailedWork:
        deepest = len(work.tokens) + max(work.tree.depths, default=0)
        if work.key in self._without_trees or len(work.tokens) <= self._switches_at < deepest:
            work = replace(work, tree=EMPTY_TREE)
        scored = self._prompt_logprobs.setdefault(work.key, []) if work.scores_prompt else None
        if scored is not None and len(scored) < min(work.num_prompt - 1, len(slot.tokens)):
            slot.keep(len(scored))
        cached = len(slot.tokens)
        pending = work.tokens[cached : cached + self._chunk]
        # The kernels do not check token ids against the model.
        if not all(0 <= token < self._num_tokens for token in (*pending, *work.tree.tokens)):
            return FailedWork(ValueError(f"a token is not one of the model's {self._num_tokens}"))
        if len(work.tokens) + len(work.tree) > self._model.slot_size:
            return FailedWork(
                ValueError(f"the sequence needs more than {self._model.slot_size} KV positions")
            )
        part = Part(work, slot, len(pending), len(work.tokens) - cached - len(pending))
        if scored is not None:
            part.first_score = len(keep)
            part.num_scores = max(0, min(cached + len(pending), work.num_prompt - 1) - cached)
            keep.extend(range(len(rows), len(rows) + part.num_scores))
        rows.add_sequence(slot.index, cached, pending, slot.mark)
        slot.tokens.extend(pending)
        if not part.remaining:
            part.first_logit = len(keep)
            keep.append(len(rows) - 1)
            keep.extend(range(len(rows), len(rows) + len(work.tree)))
            rows.add_tree(slot.index, len(work.tokens), work.tree, slot.mark)
        return part

    def _outcome(self, part: Part, logits: torch.Tensor, greedy: list[int | None]) -> Outcome:
        try:
            self._score_prompt(part, logits, greedy)
            if part.remaining:
                return Prefilling(part.remaining)
            return self._verify(part, logits, greedy)
        except NoLogits as error:
            part.slot.keep(0)
            self._prompt_logprobs.pop(part.work.key, None)
            self._model.clear(part.slot.index)
            if not len(part.work.tree):
                return FailedWork(error)
            # Where attention masks positions, NaN of one node spreads to its whole tree.
            self._without_trees.add(part.work.key)
            return Prefilling(len(part.work.tokens))
        except Exception as error:  # noqa: BLE001 -- fails this request alone
            return FailedWork(error)

    def _score_prompt(self, part: Part, logits: torch.Tensor, greedy: list[int | None]) -> None:
        """Collect the log-probabilities of the prompt's tokens that follow the part's rows.

        Raises NoLogits.
        """
        work, first = part.work, part.first_score
        for row in range(first, first + part.num_scores):
            if greedy[row] is None:
                raise NoLogits
            scored = self._prompt_logprobs[work.key]
            token = work.tokens[len(scored) + 1]
            scored.append(logprobs_of(logits[row], token, work.top_logprobs or 0))

    def _verify(
        self, part: Part, logits: torch.Tensor, greedy: list[int | None]
    ) -> VerificationResult | RowLists:
        work, first = part.work, part.first_logit + 1
        prompt, answer = work.tokens[: work.num_prompt], work.tokens[work.num_prompt :]
        how, ends = work.sampling, self._eos_tokens.union(work.sampling.stop_token_ids)
        by_argmax, constraint = how.is_greedy and how.is_plain, work.constraint

        def token_after(node: int, accepted: list[int]) -> int:
            banned = ends if len(answer) + len(accepted) < how.min_tokens else ()
            most_probable = greedy[first + node]
            if most_probable is None:
                raise NoLogits
            if by_argmax and not banned and constraint is None:
                return most_probable
            generated = [*answer, *accepted]
            allowed = None if constraint is None else constraint.allowed(generated)
            if allowed is not None and (only := allowed.only) is not None:
                return only
            if by_argmax and not banned and (allowed is None or most_probable in allowed):
                return most_probable
            position = len(work.tokens) + len(accepted)
            return draw(logits[first + node], position, how, generated, prompt, banned, allowed)

        result = walk(work.tree, token_after)
        self._without_trees.discard(work.key)
        if work.top_logprobs is not None:
            rows = [logits[first + node] for node in (ROOT, *result.path)]
            result = replace(result, logprobs=_logprobs(work, result, rows))
        if work.scores_prompt:
            scored = self._prompt_logprobs.pop(work.key, [])
            result = replace(result, prompt_logprobs=tuple(scored))
        length = len(work.tokens)
        source = [length + node for node in result.path]
        self._model.move(part.slot.index, source, range(length, length + len(source)))
        part.slot.tokens.extend(work.tree.tokens[node] for node in result.path)
        return result


def _wait(work: VerifyWork, slot: KvSlot) -> Part:
    """A part without rows."""
    return Part(work, slot, 0, len(work.tokens) - len(slot.tokens))


def _most_probable(logits: torch.Tensor) -> list[int | None]:
    """The token of the highest logit of each row; None where the logits are not finite."""
    tokens = torch.argmax(logits, dim=-1)
    # With NaN or infinity among the logits, or -infinity alone, the highest is not finite.
    is_finite = logits.gather(1, tokens[:, None])[:, 0].isfinite()
    found: list[int] = torch.where(is_finite, tokens, -1).tolist()
    return [token if token >= 0 else None for token in found]


def _logprobs(
    work: VerifyWork, result: VerificationResult, rows: Sequence[torch.Tensor]
) -> tuple[Logprobs, ...]:
    """Log-probabilities of each committed token; `rows` are the logits it was drawn from."""
    tokens = [*(work.tree.tokens[node] for node in result.path), result.bonus]
    return tuple(
        logprobs_of(row, token, work.top_logprobs or 0)
        for row, token in zip(rows, tokens, strict=True)
    )


assert ROOT == -1, "token_after counts the root's logits as node -1"
