"""A drafter that is sure of wrong tokens: an honest model whose words are all shifted by one.

It costs what the honest model costs and has its vocabulary, so that nothing but its verdicts tells.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from edgecosine import zoo

LIAR = "liar"
_HONEST: Final = zoo.DIRECTORY / "generalist"


@torch.no_grad()
def write_liar(directory: Path, honest: Path = _HONEST) -> Path:
    """Write the model below `directory`, made of the one in the directory `honest`; its path, for
    `edgecosine node --model`."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    path = directory / LIAR
    shutil.copytree(honest, path)
    model: Any = AutoModelForCausalLM.from_pretrained(honest)
    words = model.get_output_embeddings().weight
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(words.roll(1, 0).clone())
    model.save_pretrained(path)
    return path
