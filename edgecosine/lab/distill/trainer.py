"""The training of one student, which can be saved and resumed with its optimiser."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from edgecosine.lab.distill.losses import AcceptanceLoss, TrainingBatch

_BETAS = (0.9, 0.95)
_WEIGHT_DECAY = 0.01
_MAX_NORM = 1.0


class Trainer:
    """AdamW on `student` with float32 weights, under torch's autocast to bfloat16."""

    def __init__(self, student: LlamaForCausalLM, loss: AcceptanceLoss) -> None:
        self.student, self._loss = student, loss
        self._weights = [p for p in student.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(
            self._weights, lr=0.0, betas=_BETAS, weight_decay=_WEIGHT_DECAY, fused=True
        )
        self.num_steps = 0
        self.num_tokens = 0
        """Answer tokens in all steps, with repetitions."""

    def step(self, batch: TrainingBatch, learning_rate: float) -> tuple[Tensor, Tensor]:
        """Train on a batch, without waiting for a GPU.

        Returns the mean acceptance at temperature 1 and the share of equal best tokens, both
        before the step.
        """
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        device = self.student.device
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss, overlap, equal = self._loss(self.student, batch.to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._weights, _MAX_NORM)
        self._optimiser.step()
        self._optimiser.zero_grad()
        self.num_steps += 1
        self.num_tokens += len(batch.indices)
        return overlap, equal

    def save(self, path: Path) -> None:
        """Write the state for `load`, atomically."""
        state = {
            "weights": {n: p for n, p in self.student.named_parameters() if p.requires_grad},
            "optimiser": self._optimiser.state_dict(),
            "steps": self.num_steps,
            "tokens": self.num_tokens,
        }
        scratch = path.with_suffix(".tmp")
        torch.save(state, scratch)
        scratch.replace(path)

    def load(self, path: Path) -> None:
        """Restore the state written by `save`."""
        state = torch.load(path, map_location=self.student.device, weights_only=True)
        self.student.load_state_dict(state["weights"], strict=False)
        self._optimiser.load_state_dict(state["optimiser"])
        self.num_steps, self.num_tokens = state["steps"], state["tokens"]
