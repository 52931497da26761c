"""Finds the files of a model and checks that they are complete, by names and sizes.

Whether the model can be served is decided when it is loaded.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from edgecosine import models, zoo
from edgecosine.engine.loading.gguf_file import SUFFIX, is_gguf, part_names, read_gguf
from edgecosine.engine.options import LoadOptions
from edgecosine.errors import ModelUnavailable

_INDEX: Final = "model.safetensors.index.json"
_TOKENIZERS: Final = ("tokenizer.json", "vocab.txt", "tekken.json", "*.model", "*.tiktoken")
"""Each has a whole vocabulary; so have vocab.json and merges.txt together."""
_PAIR: Final = ("vocab.json", "merges.txt")
_SETTINGS: Final = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.json", "adapter_config.json", "*.jinja",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
_HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_SAMPLE_BYTES: Final = 64 << 10
_NUM_SAMPLES: Final = 64
_POINTER: Final = b"version https://git-lfs"


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def fault_of(directory: Path, *, needs_weights: bool = True) -> str | None:
    """What a directory or GGUF file lacks to be a model; None when it is complete."""
    if is_gguf(directory) and not directory.is_dir():
        try:
            read_gguf(directory)
        except ModelUnavailable as error:
            return str(error).removeprefix(f"{directory} ")
        return None
    if not (directory / "config.json").is_file():
        if files := sorted(path.name for path in directory.glob(f"*{SUFFIX}")):
            return f"config.json is missing; to load a GGUF file, name it: {directory / files[0]}"
        return "config.json is missing"
    if (directory / "adapter_config.json").is_file():
        return "it is an adapter (adapter_config.json): merge it into its model first"
    if needs_weights and (fault := _fault_of_weights(directory)):
        return fault
    pair = [name for name in _PAIR if (directory / name).is_file()]
    if not _named(directory, _TOKENIZERS) and len(pair) < len(_PAIR):
        missing = set(_PAIR).difference(pair)
        return f"tokenizer.json or {missing.pop()} is missing" if pair else "no tokenizer file"
    return next(filter(None, map(_fault_of_file, _small_files(directory))), None)


def _fault_of_weights(directory: Path) -> str | None:
    try:
        weights = _weights(directory)
    except (OSError, msgspec.MsgspecError) as error:
        return f"{_INDEX} cannot be read ({error})"
    for path in weights:
        if not path.is_file():
            return f"{path.name} is missing"
        if fault := _fault_of_file(path):
            return fault
    return None if weights else "no .safetensors file"


def _fault_of_file(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    if start == _POINTER:
        return f"{path.name} is a Git LFS pointer: run `git lfs pull`"
    return None if start or path.suffix == ".jinja" else f"{path.name} is empty"


def _small_files(directory: Path) -> list[Path]:
    """The files other than weights that affect the output of a model."""
    return _named(directory, (*_SETTINGS, *_TOKENIZERS, *_PAIR))


def _named(directory: Path, patterns: Sequence[str]) -> list[Path]:
    found = {path for pattern in patterns for path in directory.glob(pattern)}
    return sorted(path for path in found if path.is_file())


def display_name(options: LoadOptions) -> str:
    """The name under which a model is served."""
    is_known = options.model in zoo.names() or models.is_known(options.model)
    where = Path(options.model).expanduser()
    # The name of the directory in place of `.` or `..`.
    path = Path(os.path.normpath(where.absolute())) if where.exists() else where
    name = options.model if is_known else options.gguf or path.name or "model"
    return f"{name}+ballast{options.ballast}" if options.ballast > 1 else name


def zoo_models(zoo: Path) -> list[Path]:
    """Directories of the models in the zoo."""
    return sorted(path.parent for path in zoo.glob("*/config.json"))


def find_model(name: str, zoo: Path, gguf: str = "") -> Path | None:
    """The directory or GGUF file of a model in the zoo, the catalogue, on disk or in the hub cache.

    `gguf` names a file in the directory.
    """
    path = _find_model(name, zoo)
    return path / gguf if path is not None and gguf else path


def _find_model(name: str, zoo: Path) -> Path | None:
    known = {path.name: path for path in zoo_models(zoo)}
    if name in known:
        return known[name]
    if models.is_known(name):
        return models.find(name)
    path = Path(name).expanduser()
    if path.is_dir() or (is_gguf(path) and path.is_file()):
        return path
    if not is_hub_name(name):
        return None
    model = _hub_cache() / f"models--{name.replace('/', '--')}"
    with suppress(OSError):
        loaded = model / "snapshots" / (model / "refs" / "main").read_text().strip()
        if loaded.is_dir():
            return loaded
    snapshots = (model / "snapshots").glob("*/")
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def _hub_cache() -> Path:
    """The cache directory of huggingface_hub, by its rules; the library need not be installed."""
    for name, below in (
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ):
        if given := os.environ.get(name):
            return Path(os.path.expandvars(given)).expanduser() / below
    return Path("~/.cache/huggingface/hub").expanduser()


def files_digest(path: Path) -> str:
    """The identity of a model and its version: a digest of all files that affect its output, which
    are settings, tokenizer, chat templates and weights. Of files of more than 4 MiB, samples of
    64 KiB count, the header included.

    The name of a GGUF file is not part of its identity.
    """
    digest = hashlib.blake2b(digest_size=16)
    if is_gguf(path):
        for part in part_names(path.name):
            _sample(path.with_name(part), digest.update)
        return digest.hexdigest()
    for file in (*_small_files(path), *_named(path, ("*.safetensors", _INDEX))):
        digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
        _sample(file, digest.update)
    return digest.hexdigest()


def _sample(path: Path, take: Callable[[bytes], object]) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        for start in range(0, size, max(_SAMPLE_BYTES, size // _NUM_SAMPLES)):
            file.seek(start)
            take(file.read(_SAMPLE_BYTES))


def is_hub_name(name: str) -> bool:
    """Whether a name has the form OWNER/MODEL."""
    return _HUB_NAME.fullmatch(name) is not None


def loaded_weights(directory: Path) -> list[Path]:
    """The weight files that transformers reads: a single one, or else those of the index."""
    single = directory / "model.safetensors"
    return [single] if single.is_file() else _weights(directory)


def _weights(directory: Path) -> list[Path]:
    index = directory / _INDEX
    if not index.is_file():
        return sorted(directory.glob("*.safetensors"))
    names = msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values()
    return [directory / name for name in sorted(set(names))]
