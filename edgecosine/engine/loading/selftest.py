"""The self-test at load: compares our logits with those of the model in transformers.

The truth is the stock model computed in a wider format (`float32_reference.py`). The error of the
stock model in its own dtype is the error of rounding at this depth and width. Our error may be
about as large; computed in float32, where mistakes remain and rounding disappears, it may be a
small part of that. Families with recurrent state, masks by cache index or attention of their own
fail the test and are refused by name.

The sequence runs at the first positions of the context, a few tokens at its last positions, and a
few with length limits shortened (`length_limits.py`), each beside a row from the other end of the
context.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from edgecosine.engine.batch import RowBuilder, branch_among_siblings
from edgecosine.engine.cpu.blocks import rounding_inputs
from edgecosine.engine.float32_reference import computing_in
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.length_limits import limits_of, shortened
from edgecosine.engine.options import WeightForm
from edgecosine.engine.rotary import mark_of, switching_length
from edgecosine.errors import ModelUnsupported

logger = logging.getLogger(__name__)

_COMPARED = 32
"""Last positions of the sequence, whose logits are compared."""
_TREE, _REST = 12, 6
"""Of these, the positions in a branch of a tree, and those after it."""
_LONGEST_LIMIT = 256
"""The sequence exceeds limits up to this one; a longer one would slow down every load."""
_SHORT = 6
"""Longer limits are set to this in a separate test."""
_FAR = 16
"""Tokens of that test, and of the test at the last positions of the context."""
_NARROW, _FLOAT32, _WIDE = 5.0, 100.0, 0.01
"""Limits of our error in units of the stock model's: as served in a narrow type; as served in
float32; computed in float32 where the stock model is narrow. Twelve families of 24 to 36 layers
with outlier channels had up to 2.2, 3 and 0.0004; planted mistakes had 2800 and more as served in
float32, and 0.1 computed in float32."""
_FLOOR, _ROUNDED_CACHE = 1e-5, 0.1
"""Error that is ignored, in units of the standard deviation of the logits; with a cache that rounds
keys and values, which the stock model does not. Computed in float32 our cache does not either."""
_UNKNOWN = 0.01
"""The assumed error of the stock model in that unit, where it cannot be computed widely."""
_FAULTS = (RuntimeError, TypeError, ValueError, AttributeError, IndexError)


class ProvableModel(ForwardModel, Protocol):
    """A runner that can also compute in float32 and with other length limits."""

    def widely(self, slot_size: int) -> AbstractContextManager[ForwardModel]:
        """Context of the same runner in float32, with one slot of at least `slot_size` tokens."""

    def shortened(
        self, limits: Mapping[str, int], slot_size: int
    ) -> AbstractContextManager[ProvableModel]:
        """Context of the same runner with other limits (`length_limits.py`), with one slot of at
        least `slot_size` tokens."""


@dataclass(frozen=True, slots=True)
class Reference:
    """True logits of the last tokens of a sequence, and the error of the stock model."""

    tokens: list[int]
    truth: torch.Tensor
    """float32 [positions, vocabulary] of the last positions."""
    stock_error: float
    """The result of `error_of`."""
    dtype: torch.dtype
    """The number format of the stock model."""
    can_widen: bool
    """Whether both models can compute in float32; layers of a quantised model cannot."""
    start: int = 0
    """Position of the first token."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Length limits that were set for it, by name."""
    switches_at: int = 0
    """The result of `switching_length`."""
    last_position: int = 0
    """The last position of the served context."""
    further: tuple[Reference, ...] = ()
    """References for other positions and limits."""
    form: WeightForm = "bfloat16"
    """With int8 and int4, linear layers round their inputs, and so did the stock model."""
    is_cache_rounded: bool = False
    """Whether the cache rounds further than the stock model does."""

    @property
    def is_sharp(self) -> bool:
        """Whether the model rounds to float32 only."""
        return self._is_float32 and not self.is_cache_rounded

    @property
    def widest(self) -> float:
        """The limit of our error computed in float32."""
        return _FLOAT32 if self._is_float32 else _WIDE

    @property
    def _is_float32(self) -> bool:
        return self.dtype == torch.float32 and self.form == "bfloat16"

    @property
    def arithmetic(self) -> str:
        """The number format of the stock model, for messages."""
        name = str(self.dtype).removeprefix("torch.")
        return f"{name} with inputs of 8 bits" if self.form != "bfloat16" else name

    @property
    def spread(self) -> float:
        """Standard deviation of the true logits."""
        return self.truth[self.truth.isfinite()].std().item() + 1e-6


def take_reference(
    model: Any, context: int, form: WeightForm = "bfloat16", *, is_cache_rounded: bool = False
) -> Reference:
    """Run fixed sequences through the stock model, in its dtype and in a wider one.

    `context` is the most tokens of a sequence; longer limits do not matter.
    """
    config = model.config.get_text_config()
    most = min(context, getattr(config, "max_position_embeddings", 0) or context)
    limits = limits_of(config, context)
    near = max((r for r in limits.values() if r <= _LONGEST_LIMIT), default=0)
    length = min(_COMPARED + near, max(most, 1))
    passages = [
        _Passage(length),
        *([_Passage(_FAR, start=most - _FAR)] if most >= length + _FAR else []),
        *(
            _Passage(_FAR, limits={name: _SHORT})
            for name, limit in limits.items()
            if limit > _LONGEST_LIMIT
        ),
    ]
    first, *further = (
        replace(_take_reference(model, passage, most, form), is_cache_rounded=is_cache_rounded)
        for passage in passages
    )
    return replace(first, further=tuple(further))


@dataclass(frozen=True, slots=True)
class _Passage:
    length: int
    start: int = 0
    limits: Mapping[str, int] = field(default_factory=dict)


@torch.inference_mode()
def _take_reference(model: Any, passage: _Passage, context: int, form: WeightForm) -> Reference:
    config, dtype = model.config.get_text_config(), model.dtype
    tokens = [(7 + 31 * i + i * i) % min(config.vocab_size, 1000) for i in range(passage.length)]
    with shortened(model, passage.limits):
        with rounding_inputs(model) if form != "bfloat16" else nullcontext():
            stock = _stock_logits(model, tokens, passage.start)
        reference = Reference(
            tokens, stock, 0.0, dtype, can_widen=False, start=passage.start, limits=passage.limits,
            switches_at=switching_length(config), last_position=context - 1, form=form,
        )  # fmt: skip
        try:
            with _widely(model, form):
                truth = _stock_logits(model, tokens, passage.start)
        except _FAULTS as error:
            logger.warning(
                "self-test without a wider reference: dtype=%s reason=%s",
                dtype, error,
            )  # fmt: skip
            return replace(reference, stock_error=_UNKNOWN * reference.spread)
    can_widen = not getattr(model, "is_quantized", False)
    stock_error = error_of(stock, truth)
    return replace(reference, truth=truth, stock_error=stock_error, can_widen=can_widen)


def _widely(model: Any, form: WeightForm) -> AbstractContextManager[None]:
    """Context in which the stock model computes in a wider format than it is served in."""
    if form != "bfloat16":
        return nullcontext()
    return computing_in(torch.float64 if model.dtype == torch.float32 else torch.float32, model)


def check_family(model: ProvableModel, reference: Reference, family: str) -> None:
    """Run the sequences of the reference as served, and in float32.

    Raises ModelUnsupported when the logits differ by more than rounding.
    """
    _check(model, reference, family)
    for other in reference.further:
        size = len(other.tokens) + _TREE
        if other.start + size > model.slot_size:
            continue  # the runner has a shorter context, and shorter tables
        if not other.limits:
            _check(model, other, family)
            continue
        with model.shortened(other.limits, size) as short:
            _check(short, other, _with_lengths(family, other.limits))


def _check(model: ProvableModel, reference: Reference, family: str) -> None:
    check_as_served(model, reference, family)
    if reference.is_sharp or not reference.can_widen:
        return
    try:
        with model.widely(len(reference.tokens) + _TREE) as wide:
            logits = _run(wide, reference)
    except _FAULTS as error:
        logger.warning(
            "self-test in float32 not possible: dtype=%s reason=%s", reference.dtype, error
        )
        return
    _compare(logits, reference, reference.widest, family, "computed in float32", _FLOOR)


def check_as_served(model: ForwardModel, reference: Reference, family: str) -> None:
    """Run the first sequence of `check_family` as served."""
    try:
        logits = _run(model, reference)
    except _FAULTS as error:
        raise ModelUnsupported(f"model family {family!r} cannot run here: {error}") from error
    is_sharp = reference.is_sharp and reference.can_widen
    # Over few positions, the error of rounding varies more.
    narrow = _NARROW if len(reference.truth) >= _COMPARED else 2 * _NARROW
    floor = _ROUNDED_CACHE if reference.is_cache_rounded else _FLOOR
    most = _FLOAT32 if is_sharp else narrow
    how = "as served, in a cache that rounds" if reference.is_cache_rounded else "as served"
    _compare(logits, reference, most, family, how, floor)


def _with_lengths(family: str, limits: Mapping[str, int]) -> str:
    return f"{family}, {', '.join(f'{name} {length}' for name, length in limits.items())}"


def error_of(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Error of the logits: root mean square over the vocabulary, mean over the positions.

    An offset common to all logits of a position is removed: it changes no probability and is most
    of the error of rounding. The mean, since rounding is tens of times larger at a few random
    positions. Infinite where other tokens are excluded (-inf).
    """
    known = truth.isfinite().all(0)
    if not torch.equal(logits[:, ~known], truth[:, ~known]):
        return math.inf
    return (logits - truth)[:, known].std(1, correction=0).mean().item()


def _compare(
    logits: torch.Tensor, reference: Reference, most: float, family: str, how: str, floor: float
) -> None:
    error = error_of(logits.cpu(), reference.truth)
    figures = (
        f"error {error:.2g} {how}, where the stock model in "
        f"{reference.arithmetic} has {reference.stock_error:.2g}, "
        f"of logits that spread by {reference.spread:.2g}"
    )
    logger.debug("self-test: family=%s figures=%s", family, figures)
    if not error <= most * reference.stock_error + floor * reference.spread:
        raise ModelUnsupported(
            f"model family {family!r} has other logits here than in transformers: {figures}"
        )


def _stock_logits(model: Any, tokens: list[int], start: int) -> torch.Tensor:
    """float32 [positions, vocabulary] of the last tokens."""
    ids = torch.tensor([tokens], device=model.device)
    # Some families compute positions themselves and take no argument.
    positions = {"position_ids": torch.arange(start, start + len(tokens))[None].to(model.device)}
    output = model(input_ids=ids, use_cache=False, **(positions if start else {}))
    logits: torch.Tensor = output.logits[0, -_COMPARED:]
    return logits.cpu().float()


def _run(model: ForwardModel, reference: Reference) -> torch.Tensor:
    """The same logits as served: from a chunk, from a branch of a tree, and from a chunk after the
    KV positions of the branch were moved."""
    tokens, count = reference.tokens, len(reference.truth)
    size = min(_TREE, len(tokens) // 3)
    begin = len(tokens) - min(_REST, len(tokens) // 4) - size
    chunk, branch, rest = tokens[:begin], tokens[begin : begin + size], tokens[begin + size :]
    start, switches_at = reference.start, reference.switches_at
    shift = start + mark_of(start + len(tokens), switches_at)

    def run(rows: RowBuilder, keep: range) -> torch.Tensor:
        far = model.slot_size - 1
        # Beyond all KV positions of the sequence; tables may end with the slot.
        if far >= len(tokens) + size:
            position = 0 if start else min(far, reference.last_position)
            mark = mark_of(position + 1, switches_at)
            rows.add_node(0, 1, tokens[0], [far], position + mark - 1)
        return model.forward(rows.build(), keep)

    rows = RowBuilder()
    rows.add_sequence(0, 0, chunk, shift)
    parts = [run(rows, range(len(tokens) - count, begin))]
    rows = RowBuilder()
    rows.add_tree(0, begin, branch_among_siblings(branch), shift)
    right = range(1, 2 * size, 2)
    parts.append(run(rows, right))
    model.move(0, [begin + node for node in right], range(begin, begin + size))
    rows = RowBuilder()
    rows.add_sequence(0, begin + size, rest, shift)
    parts.append(run(rows, range(len(rest))))
    return torch.cat(parts)
