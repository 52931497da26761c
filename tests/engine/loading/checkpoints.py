"""Changes of a model's directory as made by downloads, conversions and fine-tunes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from edgecosine import zoo

Tensors = dict[str, torch.Tensor]


def copy_zoo(path: Path, name: str = "generalist") -> Path:
    """A copy of a model of the zoo, with a tokenizer and a chat template."""
    shutil.copytree(zoo.DIRECTORY / name, path)
    return path


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(directory: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Rewrite the weights of a model."""
    file = directory / "model.safetensors"
    changed = change({key: value.clone() for key, value in load_file(file).items()})
    save_file(changed, file, metadata={"format": "pt"})
