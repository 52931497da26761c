"""Are a model's files where a node will look for them, and whole?

It looks at names and sizes alone; whether a model can be served is the engine's to say.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgecosine import models
from edgecosine.engine.gguf_file import SUFFIX, is_gguf, part_names, read_gguf
from edgecosine.errors import ModelUnavailable

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
    """What is missing for a directory or GGUF file to hold a model; None when it is whole."""
    if is_gguf(directory) and not directory.is_dir():
        try:
            read_gguf(directory)
        except ModelUnavailable as error:
            return str(error).removeprefix(f"{directory} ")
        return None
    if not (directory / "config.json").is_file():
        if files := sorted(path.name for path in directory.glob(f"*{SUFFIX}")):
            return f"config.json is missing; or name a file by --gguf, as in --gguf {files[0]}"
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


def find_model(name: str, zoo: Path, gguf: str = "") -> Path | None:
    """The directory or GGUF file of a model of the zoo, the catalogue, the disk or the hub's cache.

    `gguf` names a file in the directory.
    """
    path = _find_model(name, zoo)
    return path / gguf if path is not None and gguf else path


def _find_model(name: str, zoo: Path) -> Path | None:
    if (zoo / name).is_dir():
        return zoo / name
    if models.is_known(name):
        return models.find(name)
    path = Path(name).expanduser()
    if path.is_dir() or (is_gguf(path) and path.is_file()):
        return path
    if not is_hub_name(name):
        return None
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    cache = Path(os.environ.get("HF_HUB_CACHE", cache))
    snapshots = cache / f"models--{name.replace('/', '--')}" / "snapshots"
    return max(snapshots.glob("*/"), key=lambda path: path.stat().st_mtime, default=None)


def files_digest(path: Path) -> str:
    """Tells a model from another one, and from another version of it, by its settings, vocabulary
    and weights; of files of more than 4 MiB by samples of 64 KiB, the first of which has shapes.

    A GGUF file is the same model under any name.
    """
    digest = hashlib.blake2b(digest_size=16)
    if is_gguf(path):
        for part in part_names(path.name):
            _sample(path.with_name(part), digest.update)
        return digest.hexdigest()
    names = ("config.json", *_TOKENIZERS)
    for file in (*(path / name for name in names), *_weights(path)):
        if file.is_file():
            digest.update(file.name.encode() + b"\0")
            _sample(file, digest.update)
    return digest.hexdigest()


def _sample(path: Path, take: Callable[[bytes], object]) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        for start in range(0, size, max(_SAMPLE_BYTES, size // _NUM_SAMPLES)):
            file.seek(start)
            take(file.read(_SAMPLE_BYTES))


def is_hub_name(name: str) -> bool:
    """Whether a name has the form of a model hub's, OWNER/MODEL."""
    return _HUB_NAME.fullmatch(name) is not None


def _weights(directory: Path) -> list[Path]:
    index = directory / _INDEX
    if not index.is_file():
        return sorted(directory.glob("*.safetensors"))
    names = msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values()
    return [directory / name for name in sorted(set(names))]
