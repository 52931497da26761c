"""Whether a model family works here: our passes are held against the model's own definition.

The truth is the stock model computed widely (`wide.py`), with the weights as they are. How far the
stock model in its own dtype is off the truth is what rounding costs at this depth and width. Our
passes may be off by about as much; and where they too are computed widely, which leaves mistakes
and takes rounding away, by a small part of it. Families with recurrent state, masks by cache index
or attention of their own fail this test and are refused by name, instead of being served wrongly.
"""

from __future__ import annotations

import logging
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from edgecosine.engine.model import PassModel
from edgecosine.engine.options import WeightForm
from edgecosine.engine.packing import rounding_inputs
from edgecosine.engine.rows import RowBuilder
from edgecosine.engine.wide import computing_in
from edgecosine.errors import ModelUnsupported
from edgecosine.protocol.tree import ROOT, TokenTree

logger = logging.getLogger(__name__)

_COMPARED = 32
"""Last positions of the sequence, whose logits are compared."""
_TREE, _REST = 12, 6
"""Of these, the positions that are a branch of a tree, and those after it."""
_LONGEST_WINDOW = 256
"""The sequence goes beyond windows up to this one; more would cost too much at every load."""
_NARROW, _FLOAT32, _WIDE = 5.0, 100.0, 0.01
"""Most of our error in units of the stock model's: as served in a narrow type or in float32, and
widely where the stock model is narrow. Twelve families of 24 to 36 layers with outlier channels had
up to 2.2, 3 and 0.0004; mistakes planted in them had 2800 and more in float32, 0.1 widely."""
_FLOOR = 1e-5
"""Error that is none, in units of the logits' spread."""
_UNKNOWN = 0.01
"""The stock model's error in that unit, where there is no truth to measure it by."""
_FAULTS = (RuntimeError, TypeError, ValueError, AttributeError, IndexError)


class ProvableModel(PassModel, Protocol):
    """A way of running that can show what it computes without rounding to narrow numbers."""

    def widely(self, cells: int) -> AbstractContextManager[PassModel]:
        """Context of the same way in float32, with one slot of at least `cells` tokens."""


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


@torch.inference_mode()
def take_reference(model: Any, context: int, form: WeightForm = "bfloat16") -> Reference:
    """Run a fixed sequence through the model as transformers defines it, in its dtype and widely.

    `context` is the most tokens that will be served: longer windows do not matter.
    """
    config, dtype = model.config.get_text_config(), model.dtype
    length = _length(config, context)
    tokens = [(7 + 31 * i + i * i) % min(config.vocab_size, 1000) for i in range(length)]
    if form == "int8":
        truth = _stock_logits(model, tokens)
        with rounding_inputs(model):
            error = error_of(_stock_logits(model, tokens), truth)
        return Reference(tokens, truth, error, dtype, can_widen=True, form=form)
    stock = _stock_logits(model, tokens)
    try:
        with computing_in(torch.float64 if dtype == torch.float32 else torch.float32, model):
            truth = _stock_logits(model, tokens)
    except _FAULTS as error:
        logger.warning("the self-test knows the model's output in %s only: %s", dtype, error)
        unknown = Reference(tokens, stock, 0.0, dtype, can_widen=False)
        return replace(unknown, stock_error=_UNKNOWN * unknown.spread)
    can_widen = not getattr(model, "is_quantized", False)
    return Reference(tokens, truth, error_of(stock, truth), dtype, can_widen)


def check_family(model: ProvableModel, reference: Reference, family: str) -> None:
    """Run the sequence of the reference as it is served, and widely.

    Raises ModelUnsupported when the logits differ by more than rounding.
    """
    check_as_served(model, reference, family)
    if reference.is_sharp or not reference.can_widen:
        return
    try:
        with model.widely(len(reference.tokens) + _TREE) as wide:
            logits = _run(wide, reference)
    except _FAULTS as error:
        logger.warning("the self-test sees no further than %s: %s", reference.dtype, error)
        return
    _compare(logits, reference, _WIDE, family, "computed in float32")


def check_as_served(model: PassModel, reference: Reference, family: str) -> None:
    """The part of `check_family` that runs the model just as it is served."""
    try:
        logits = _run(model, reference)
    except _FAULTS as error:
        raise ModelUnsupported(f"model family {family!r} cannot run here: {error}") from error
    is_sharp = reference.is_sharp and reference.can_widen
    _compare(logits, reference, _FLOAT32 if is_sharp else _NARROW, family, "as served")


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
    logger.debug("self-test of %s: %s", family, figures)
    if not error <= most * reference.stock_error + _FLOOR * reference.spread:
        raise ModelUnsupported(
            f"model family {family!r} gives other logits here than by its own definition: {figures}"
        )


def _length(config: Any, context: int) -> int:
    windows = (getattr(config, name, 0) for name in ("sliding_window", "attention_chunk_size"))
    reach = max((window for window in windows if window and window < context), default=0)
    if reach > _LONGEST_WINDOW:
        logger.info("the self-test does not go beyond the window of %d tokens", reach)
        reach = 0
    return min(_COMPARED + reach, getattr(config, "max_position_embeddings", 0) or _COMPARED)


def _stock_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    """float32 [positions, vocabulary] of the last tokens."""
    ids = torch.tensor([tokens], device=model.device)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0, -_COMPARED:]
    return logits.cpu().float()


def _run(model: PassModel, reference: Reference) -> torch.Tensor:
    """The same logits as serving gets them: from a chunk, from a branch of a tree, and from a chunk
    after the branch's cells were moved to their places."""
    tokens, count = reference.tokens, len(reference.truth)
    size = min(_TREE, len(tokens) // 3)
    begin = len(tokens) - min(_REST, len(tokens) // 4) - size
    chunk, branch, rest = tokens[:begin], tokens[begin : begin + size], tokens[begin + size :]
    rows = RowBuilder()
    rows.add_sequence(0, 0, chunk)
    parts = [model.forward(rows.build(), range(len(tokens) - count, begin))]
    rows = RowBuilder()
    rows.add_tree(0, begin, _among_siblings(branch))
    right = range(1, 2 * size, 2)
    parts.append(model.forward(rows.build(), right))
    model.move(0, [begin + node for node in right], range(begin, begin + size))
    rows = RowBuilder()
    rows.add_sequence(0, begin + size, rest)
    parts.append(model.forward(rows.build(), range(len(rest))))
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
