"""A drafter that is confident in wrong tokens: a model whose output tokens are shifted by one.

It has the cost and the vocabulary of the original, so that only verification results reveal it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from edgecosine import zoo

ADVERSARIAL = "adversarial"
_HONEST: Final = zoo.DIRECTORY / "generalist"


@torch.no_grad()
def write_adversarial_drafter(directory: Path, honest: Path = _HONEST) -> Path:
    """Write the model below `directory`, made of the one in `honest`; returns its path."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    path = directory / ADVERSARIAL
    shutil.copytree(honest, path)
    model: Any = AutoModelForCausalLM.from_pretrained(honest)
    words = model.get_output_embeddings().weight
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(words.roll(1, 0).clone())
    model.save_pretrained(path)
    return path
