"""Counts differences between assisted and plain generation of transformers itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgecosine.lab.exactness.models import CheckedModel, zoo_model


class AssistedPair:
    """A model and its assistant, greedy, in stock transformers."""

    def __init__(self, candidate: CheckedModel, device: str) -> None:
        self._device = device
        self._model: Any = candidate.build().to(device)
        self._assistant: Any = (
            candidate.build() if candidate.drafter is None
            else zoo_model(candidate.drafter, candidate.dtype)
        ).to(device)  # fmt: skip
        for model in (self._model, self._assistant):
            model.generation_config.pad_token_id = 0
            model.generation_config.eos_token_id = None

    def diverging_tokens(self, prompt: Sequence[int], num_tokens: int) -> int:
        """Number of tokens by which the assisted answer differs from the plain one."""
        plain = self._generate(prompt, num_tokens)
        assisted = self._generate(prompt, num_tokens, assistant_model=self._assistant)
        return sum(one != other for one, other in zip(plain, assisted, strict=True))

    @torch.inference_mode()
    def _generate(self, prompt: Sequence[int], num_tokens: int, **how: Any) -> list[int]:
        tokens = torch.tensor([list(prompt)], device=self._device)
        output = self._model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=num_tokens,
            do_sample=False, **how,
        )  # fmt: skip
        answer: list[int] = output[0, len(prompt) :].tolist()
        return answer
