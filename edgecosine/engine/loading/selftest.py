"""Whether a model family works here: our passes are held against the model's own definition.

The truth is the stock model computed widely (`float32_reference.py`), with the weights as they are.
How far the stock model in its own dtype is off the truth is what rounding costs at this depth and
width. Our passes may be off by about as much; and where they too are computed widely, which leaves
mistakes and takes rounding away, by a small part of it. Families with recurrent state, masks by
cache index or attention of their own fail this test and are refused by name, instead of being
served wrongly.

The sequence is run at the first positions of a context, a few tokens at its last ones, and some
where lengths that the sequence does not reach are shortened (`length_limits.py`); each beside a row
from the other end of the context.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.cpu.packing import rounding_inputs
from edgecosine.engine.float32_reference import computing_in
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.length_limits import limits_of, shortened
from edgecosine.engine.options import WeightForm
from edgecosine.engine.rotary import mark_of, turning_length
from edgecosine.errors import ModelUnsupported
from edgecosine.protocol.wire.tree import ROOT, TokenTree

logger = logging.getLogger(__name__)

_COMPARED = 32
"""Last positions of the sequence, whose logits are compared."""
_TREE, _REST = 12, 6
"""Of these, the positions that are a branch of a tree, and those after it."""
_LONGEST_LIMIT = 256
"""The sequence goes beyond windows up to this one; more would cost too much at every load."""
_SHORT = 6
"""What longer ones are for a test of their own."""
_FAR = 16
"""Tokens of such a test, and of one at the last positions of the context."""
_NARROW, _FLOAT32, _WIDE = 5.0, 100.0, 0.01
"""Most of our error in units of the stock model's: as served in a narrow type or in float32, and
widely where the stock model is narrow. Twelve families of 24 to 36 layers with outlier channels had
up to 2.2, 3 and 0.0004; mistakes planted in them had 2800 and more in float32, 0.1 widely."""
_FLOOR = 1e-5
"""Error that is none, in units of the logits' spread."""
_UNKNOWN = 0.01
"""The stock model's error in that unit, where there is no truth to measure it by."""
_FAULTS = (RuntimeError, TypeError, ValueError, AttributeError, IndexError)


class ProvableModel(ForwardModel, Protocol):
    """A way of running that can show what it computes without rounding to narrow numbers."""

    def widely(self, slot_size: int) -> AbstractContextManager[ForwardModel]:
        """Context of the same way in float32, with one slot of at least `slot_size` tokens."""

    def shortened(
        self, limits: Mapping[str, int], slot_size: int
    ) -> AbstractContextManager[ProvableModel]:
        """Context of the same way with other lengths (`length_limits.py`), with at least one slot
        of at
        least `slot_size` tokens."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What the last tokens of a sequence give by definition, and how near the stock model comes."""

    tokens: list[int]
    truth: torch.Tensor
    """float32 [positions, vocabulary], of the last positions."""
    stock_error: float
    """As `error_of` gives it."""
    dtype: torch.dtype
    """What the stock model computes in."""
    can_widen: bool
    """Whether rounding can be taken away from both. Layers of a quantised model round by rules of
    their own, whatever the dtype."""
    start: int = 0
    """Position of the first token."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Lengths that the model was given for it, by name."""
    turns_at: int = 0
    """As `turning_length` gives it."""
    last_position: int = 0
    """Of the context that will be served."""
    further: tuple[Reference, ...] = ()
    """The same for other positions and lengths."""
    form: WeightForm = "bfloat16"
    """With int8, linear layers round their inputs, and the stock model's were rounded likewise."""

    @property
    def is_sharp(self) -> bool:
        """Whether nothing is rounded to less than float32."""
        return self.dtype == torch.float32 and self.form != "int8"

    @property
    def arithmetic(self) -> str:
        """What the stock model computes in, in words."""
        name = str(self.dtype).removeprefix("torch.")
        return f"{name} with inputs of 8 bits" if self.form == "int8" else name

    @property
    def spread(self) -> float:
        """Standard deviation of the true logits."""
        return self.truth[self.truth.isfinite()].std().item() + 1e-6


def take_reference(model: Any, context: int, form: WeightForm = "bfloat16") -> Reference:
    """Run fixed sequences through the model as transformers defines it, in its dtype and widely.

    `context` is the most tokens that will be served: longer windows do not matter.
    """
    config = model.config.get_text_config()
    most = min(context, getattr(config, "max_position_embeddings", 0) or context)
    limits = limits_of(config, context)
    near = max((r for r in limits.values() if r <= _LONGEST_LIMIT), default=0)
    length = min(_COMPARED + near, max(most, 1))
    places = [
        _Place(length),
        *([_Place(_FAR, start=most - _FAR)] if most >= length + _FAR else []),
        *(
            _Place(_FAR, limits={name: _SHORT})
            for name, limit in limits.items()
            if limit > _LONGEST_LIMIT
        ),
    ]
    first, *further = (_take_reference(model, place, most, form) for place in places)
    return replace(first, further=tuple(further))


@dataclass(frozen=True, slots=True)
class _Place:
    length: int
    start: int = 0
    limits: Mapping[str, int] = field(default_factory=dict)


@torch.inference_mode()
def _take_reference(model: Any, place: _Place, context: int, form: WeightForm) -> Reference:
    config, dtype = model.config.get_text_config(), model.dtype
    tokens = [(7 + 31 * i + i * i) % min(config.vocab_size, 1000) for i in range(place.length)]
    with shortened(model, place.limits):
        with rounding_inputs(model) if form == "int8" else nullcontext():
            stock = _stock_logits(model, tokens, place.start)
        reference = Reference(
            tokens, stock, 0.0, dtype, can_widen=False, start=place.start, limits=place.limits,
            turns_at=turning_length(config), last_position=context - 1, form=form,
        )  # fmt: skip
        try:
            with _widely(model, form):
                truth = _stock_logits(model, tokens, place.start)
        except _FAULTS as error:
            logger.warning(
                "the self-test knows the model's output in one type only: dtype=%s reason=%s",
                dtype, error,
            )  # fmt: skip
            return replace(reference, stock_error=_UNKNOWN * reference.spread)
    can_widen = not getattr(model, "is_quantized", False)
    stock_error = error_of(stock, truth)
    return replace(reference, truth=truth, stock_error=stock_error, can_widen=can_widen)


def _widely(model: Any, form: WeightForm) -> AbstractContextManager[None]:
    """Context in which the stock model rounds by far less than it is served with."""
    if form == "int8":
        return nullcontext()
    return computing_in(torch.float64 if model.dtype == torch.float32 else torch.float32, model)


def check_family(model: ProvableModel, reference: Reference, family: str) -> None:
    """Run the sequences of the reference as they are served, and widely.

    Raises ModelUnsupported when the logits differ by more than rounding.
    """
    _check(model, reference, family)
    for other in reference.further:
        size = len(other.tokens) + _TREE
        if other.start + size > model.slot_size:
            continue  # an engine of a shorter context, and of shorter tables
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
        logger.warning("the self-test sees no further: dtype=%s reason=%s", reference.dtype, error)
        return
    _compare(logits, reference, _WIDE, family, "computed in float32")


def check_as_served(model: ForwardModel, reference: Reference, family: str) -> None:
    """The part of `check_family` that runs the first sequence just as it is served."""
    try:
        logits = _run(model, reference)
    except _FAULTS as error:
        raise ModelUnsupported(f"model family {family!r} cannot run here: {error}") from error
    is_sharp = reference.is_sharp and reference.can_widen
    # Over few positions, how large rounding happens to be is less even.
    narrow = _NARROW if len(reference.truth) >= _COMPARED else 2 * _NARROW
    _compare(logits, reference, _FLOAT32 if is_sharp else narrow, family, "as served")


def _with_lengths(family: str, limits: Mapping[str, int]) -> str:
    return f"{family}, {', '.join(f'{name} {length}' for name, length in limits.items())}"


def error_of(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Error of the logits: root mean square over the vocabulary, mean over the positions.

    What is the same for all logits of a position is left out, for it changes no probability and is
    most of what rounding does. The mean, because rounding may be tens of times larger at a few
    positions, and at which ones is chance. Infinite where other tokens are ruled out (-inf).
    """
    known = truth.isfinite().all(0)
    if not torch.equal(logits[:, ~known], truth[:, ~known]):
        return math.inf
    return (logits - truth)[:, known].std(1, correction=0).mean().item()


def _compare(
    logits: torch.Tensor, reference: Reference, most: float, family: str, how: str
) -> None:
    error = error_of(logits.cpu(), reference.truth)
    figures = (
        f"error {error:.2g} {how}, where the stock model in "
        f"{reference.arithmetic} has {reference.stock_error:.2g}, "
        f"of logits that spread by {reference.spread:.2g}"
    )
    logger.debug("self-test: family=%s figures=%s", family, figures)
    if not error <= most * reference.stock_error + _FLOOR * reference.spread:
        raise ModelUnsupported(
            f"model family {family!r} gives other logits here than by its own definition: {figures}"
        )


def _stock_logits(model: Any, tokens: list[int], start: int) -> torch.Tensor:
    """float32 [positions, vocabulary] of the last tokens."""
    ids = torch.tensor([tokens], device=model.device)
    # A family may know its positions by itself alone.
    positions = {"position_ids": torch.arange(start, start + len(tokens))[None].to(model.device)}
    output = model(input_ids=ids, use_cache=False, **(positions if start else {}))
    logits: torch.Tensor = output.logits[0, -_COMPARED:]
    return logits.cpu().float()


def _run(model: ForwardModel, reference: Reference) -> torch.Tensor:
    """The same logits as serving gets them: from a chunk, from a branch of a tree, and from a chunk
    after the branch's cells were moved to their places."""
    tokens, count = reference.tokens, len(reference.truth)
    size = min(_TREE, len(tokens) // 3)
    begin = len(tokens) - min(_REST, len(tokens) // 4) - size
    chunk, branch, rest = tokens[:begin], tokens[begin : begin + size], tokens[begin + size :]
    start, turns_at = reference.start, reference.turns_at
    shift = start + mark_of(start + len(tokens), turns_at)

    def run(rows: RowBuilder, keep: range) -> torch.Tensor:
        far = model.slot_size - 1
        # Beyond all cells that the sequence takes; tables may end where the cells do.
        if far >= len(tokens) + size:
            position = 0 if start else min(far, reference.last_position)
            mark = mark_of(position + 1, turns_at)
            rows.add_node(0, 1, tokens[0], [far], position + mark - 1)
        return model.forward(rows.build(), keep)

    rows = RowBuilder()
    rows.add_sequence(0, 0, chunk, shift)
    parts = [run(rows, range(len(tokens) - count, begin))]
    rows = RowBuilder()
    rows.add_tree(0, begin, _among_siblings(branch), shift)
    right = range(1, 2 * size, 2)
    parts.append(run(rows, right))
    model.move(0, [begin + node for node in right], range(begin, begin + size))
    rows = RowBuilder()
    rows.add_sequence(0, begin + size, rest, shift)
    parts.append(run(rows, range(len(rest))))
    return torch.cat(parts)


def _among_siblings(branch: list[int]) -> TokenTree:
    """A tree in which each token of the branch comes after a wrong sibling."""
    nodes, parents, right = list[int](), list[int](), ROOT
    for token in branch:
        nodes += [abs(token - 1), token]
        parents += [right, right]
        right = len(nodes) - 1
    size = len(nodes)
    return TokenTree(tuple(nodes), tuple(parents), (1.0,) * size, (1,) * size)
