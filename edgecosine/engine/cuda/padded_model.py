"""Runs a transformers model in batches of fixed shapes, recorded as CUDA graphs where possible.

The path for GPUs. On a CPU, where it is tested, it gives the same logits without graphs.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from edgecosine.engine.attention import NAME, BatchRows, attending_by
from edgecosine.engine.cuda.graphs import Capture
from edgecosine.engine.cuda.padded_attention import PaddedAttention, find_layers
from edgecosine.engine.cuda.padded_shapes import ROWS, BatchInputs, BatchShape, arrange
from edgecosine.engine.float32_reference import computing_in
from edgecosine.engine.forward_pass import ForwardModel, bytes_of
from edgecosine.engine.length_limits import shortened
from edgecosine.engine.rotary import rotate_by_sequence
from edgecosine.errors import ModelUnsupported

logger = logging.getLogger(__name__)

MAX_GRAPHS = 96
"""Most recorded shapes, each some MiB of driver memory; others run operation by operation."""
RUNS_TO_REPLAY = 3
"""Forward passes of a shape until a recording is replayed: the last one of them is a replay."""
_ALIGNMENT = 64
"""In KV positions; the attention kernels copy masks of other lengths."""


def capacity(slot_size: int) -> int:
    """KV positions allocated for a slot of `slot_size`: one more for padding, rounded up."""
    return -(-(slot_size + 1) // _ALIGNMENT) * _ALIGNMENT


@dataclass(slots=True)
class _Graph:
    """A recorded forward pass, which reads `inputs` and writes `logits`."""

    inputs: torch.Tensor
    logits: torch.Tensor
    replay: Callable[[], object]

    def run(self, flat: torch.Tensor) -> torch.Tensor:
        self.inputs.copy_(flat, non_blocking=True)
        self.replay()
        return self.logits.clone()


class PaddedModel:
    """Gives the logits of `SlotModel` up to rounding. Not thread-safe.

    A new shape runs operation by operation; the second time it is recorded, afterwards replayed.
    No method waits for the device. Raises ModelUnsupported for a model that does not use the
    attention interface of transformers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int,
        slot_size: int,
        capture: Capture | None,
        cells: torch.dtype | None = None,
    ) -> None:
        model.set_attn_implementation(NAME)
        rotate_by_sequence(model)
        self._model: Any = model.eval()  # type: ignore[no-untyped-call]
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                # It would wait for the device to look for padding, of which a flat batch has none.
                part.warn_if_padding_and_no_attention_mask = _ignore  # type: ignore[method-assign]
        self._device = model.device
        self._slots, self._slot_size, self._cells = slots, slot_size, cells
        self._capacity = capacity(slot_size)
        self._attention = self._make_attention()
        self._moves: list[tuple[int, Sequence[int], Sequence[int]]] = []
        self._capture = capture
        self._seen: set[BatchShape] = set()
        self._graphs: dict[BatchShape, _Graph] = {}
        self._vocabulary = 0
        self._logits = torch.empty(0, 0)

    @property
    def slot_size(self) -> int:
        """KV positions of a slot, those for draft nodes included."""
        return self._slot_size

    @property
    def held(self) -> tuple[int, int]:
        """Bytes of the weights, and of the cache."""
        weights = bytes_of(itertools.chain(self._model.parameters(), self._model.buffers()))
        return weights, bytes_of(self._attention.stacks)

    @torch.inference_mode()
    def forward(self, rows: BatchRows, keep: Sequence[int]) -> torch.Tensor:
        """Run the rows; returns float32 logits [len(keep), vocabulary] of the rows numbered in
        `keep`, on the device of the model."""
        shape, numbers = arrange(
            rows, keep, slots=self._slots, slot_size=self._capacity, scratch=self._slot_size
        )
        flat = self._upload(numbers)
        self._apply_moves()
        graph = self._graph(shape, flat)
        logits = self._compute(shape, flat) if graph is None else graph.run(flat)
        self._seen.add(shape)
        return logits[: len(keep)]

    def move(self, slot: int, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy keys and values from `source` to `target` KV positions of a slot, in all layers.

        The copy is made before the next forward pass, together with those of other slots."""
        if list(source) == list(target):
            return
        if any(slot == other for other, _, _ in self._moves):
            self._apply_moves()
        self._moves.append((slot, source, target))

    @torch.inference_mode()
    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy the KV positions start to end from slot to slot, in all layers."""
        self._apply_moves()
        for stack in self._attention.stacks:
            stack[:, target, :, start:end] = stack[:, source, :, start:end]

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Fill a slot with zeros: attention reads masked positions, too, and 0 * NaN is NaN."""
        self._apply_moves()
        for stack in self._attention.stacks:
            stack[:, slot] = 0

    @contextmanager
    def widely(self, slot_size: int) -> Iterator[ForwardModel]:
        """Context of the same model in float32, also in the cache, with one slot of `slot_size`
        tokens, not recorded."""
        with computing_in(torch.float32, self._model):
            yield PaddedModel(self._model, slots=1, slot_size=slot_size, capture=None)

    @contextmanager
    def shortened(self, limits: Mapping[str, int], slot_size: int) -> Iterator[PaddedModel]:
        """Context of the same model with the length limits `limits`, with one slot of `slot_size`
        tokens, not recorded."""
        with shortened(self._model, limits):
            yield PaddedModel(
                self._model, slots=1, slot_size=slot_size, capture=None, cells=self._cells
            )

    @torch.inference_mode()
    def _make_attention(self) -> PaddedAttention:
        one = torch.zeros(1, 1, dtype=torch.int64, device=self._device)
        layers = find_layers(
            lambda: self._model(
                input_ids=one, position_ids=one, attention_mask=None, use_cache=False
            ),
            self._cells,
        )
        if not layers.found:
            raise ModelUnsupported(
                f"model family {self._model.config.model_type!r} does not use the attention "
                "interface of transformers"
            )
        return PaddedAttention(
            layers, slots=self._slots, slot_size=self._capacity, device=self._device
        )

    def _compute(self, shape: BatchShape, flat: torch.Tensor) -> torch.Tensor:
        """float32 logits [keep, vocabulary] of a padded batch."""
        inputs = BatchInputs.views(flat, shape)
        self._attention.begin(shape, inputs)
        try:
            with attending_by(self._attention):
                output = self._model(
                    input_ids=inputs.tokens[None],
                    position_ids=inputs.positions[None],
                    attention_mask=None,
                    use_cache=False,
                    logits_to_keep=inputs.keep,
                )
        finally:
            self._attention.end()
        logits: torch.Tensor = output.logits[0].float()
        self._vocabulary = logits.shape[1]
        return logits

    def _graph(self, shape: BatchShape, flat: torch.Tensor) -> _Graph | None:
        """The recording of a shape, made now if it can be; None: run operation by operation."""
        graph = self._graphs.get(shape)
        if graph is not None or self._capture is None or shape not in self._seen:
            return graph
        if shape.rows > ROWS[-1] or len(self._graphs) >= MAX_GRAPHS:
            return None
        inputs, logits = flat.clone(), self._room_for(shape)

        def compute() -> None:
            logits.copy_(self._compute(shape, inputs))

        try:
            graph = _Graph(inputs, logits, self._capture(compute))
        except RuntimeError as error:  # torch.AcceleratorError is one, from torch 2.8 on
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            logger.warning("CUDA graphs off, running operation by operation: reason=%s", reason)
            self._capture = None
            return None
        logger.debug("recorded: shape=%s", shape)
        self._graphs[shape] = graph
        return graph

    def _room_for(self, shape: BatchShape) -> torch.Tensor:
        """The output tensor of a graph; all graphs share one, since they run one at a time."""
        if not self._logits.numel():
            self._logits = torch.empty(ROWS[-1], self._vocabulary, device=self._device)
        return self._logits[: shape.keep]

    @torch.inference_mode()
    def _apply_moves(self) -> None:
        if not self._moves:
            return
        slots = [slot for slot, source, _ in self._moves for _ in source]
        sources = [at for _, source, _ in self._moves for at in source]
        targets = [at for _, _, target in self._moves for at in target]
        self._moves.clear()
        self._attention.move(*self._upload(torch.tensor([slots, sources, targets])).unbind())

    def _upload(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type == "cpu":
            return tensor
        # A copy from pinned memory does not block; the memory is reused only after it.
        return tensor.pin_memory().to(self._device, non_blocking=True)


def _ignore(*_: object) -> None:
    pass
