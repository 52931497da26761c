"""Are a model's files where a node will look for them, and whole?

It looks at names and sizes alone; whether a model can be served is the engine's to say.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Final

import msgspec

NGRAM: Final = "ngram"
_INDEX: Final = "model.safetensors.index.json"
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
_HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_SAMPLE_BYTES: Final = 64 << 10
_NUM_SAMPLES: Final = 64
_POINTER: Final = b"version https://git-lfs"


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def fault_of(directory: Path) -> str | None:
    """What is missing for the directory to hold a model; None when it is whole."""
    if not (directory / "config.json").is_file():
        return "config.json is missing"
    if fault := _fault_of_weights(directory):
        return fault
    if not any((directory / name).is_file() for name in _TOKENIZERS):
        return "no tokenizer file"
    return None


def _fault_of_weights(directory: Path) -> str | None:
    try:
        weights = _weights(directory)
    except (OSError, msgspec.MsgspecError) as error:
        return f"{_INDEX} cannot be read ({error})"
    for path in weights:
        if not path.is_file():
            return f"{path.name} is missing"
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                return f"{path.name} is a Git LFS pointer: run `git lfs pull`"
    return None if weights else "no .safetensors file"


def zoo_models(zoo: Path) -> list[Path]:
    """Directories of the models that come with EdgeCoSine."""
    return sorted(path.parent for path in zoo.glob("*/config.json"))


def find_model(name: str, zoo: Path) -> Path | None:
    """The directory of a zoo model, a local directory or a downloaded hub model."""
    for path in (zoo / name, Path(name)):
        if path.is_dir():
            return path
    if not is_hub_name(name):
        return None
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    cache = Path(os.environ.get("HF_HUB_CACHE", cache))
    snapshots = cache / f"models--{name.replace('/', '--')}" / "snapshots"
    return max(snapshots.glob("*/"), key=lambda path: path.stat().st_mtime, default=None)


def files_digest(directory: Path) -> str:
    """Tells a model from another one, and from another version of it, by its settings, vocabulary
    and weights; of files of more than 4 MiB by samples of 64 KiB, the first of which has shapes."""
    digest = hashlib.blake2b(digest_size=16)
    names = ("config.json", *_TOKENIZERS)
    for path in (*(directory / name for name in names), *_weights(directory)):
        if not path.is_file():
            continue
        digest.update(path.name.encode() + b"\0")
        size = path.stat().st_size
        with path.open("rb") as file:
            for start in range(0, size, max(_SAMPLE_BYTES, size // _NUM_SAMPLES)):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def is_hub_name(name: str) -> bool:
    """Whether a name has the form of a model hub's, OWNER/MODEL."""
    return _HUB_NAME.fullmatch(name) is not None


def _weights(directory: Path) -> list[Path]:
    index = directory / _INDEX
    if not index.is_file():
        return sorted(directory.glob("*.safetensors"))
    names = msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values()
    return [directory / name for name in sorted(set(names))]
