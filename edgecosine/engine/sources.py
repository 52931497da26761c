"""Where a model comes from: what a name stands for, and its files.

A name is a model of the zoo, a model of the catalogue, a directory or GGUF file, or a hub id, in
this order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgecosine import models, zoo
from edgecosine.engine.gguf_file import GgufModel, is_gguf, part_names, read_gguf
from edgecosine.engine.model_files import fault_of
from edgecosine.engine.progress import download_bar, showing_progress
from edgecosine.errors import ModelUnavailable


@dataclass(frozen=True, slots=True)
class Source:
    """A directory or hub id with a checkpoint of safetensors, unless there is a GGUF model."""

    where: str
    gguf: GgufModel | None = None


def locate(name: str, gguf: str = "") -> Source:
    """The source that `name` stands for; `gguf` names a file in a directory or hub model.

    A model of the catalogue that is not on this machine yet is fetched.
    Raises ModelUnavailable for a directory or file that holds no whole model.
    """
    if name in zoo.names():
        return Source(str(zoo.DIRECTORY / name))
    path = models.obtain(name) or Path(name).expanduser()
    if is_gguf(path) and not path.is_dir():
        if gguf:
            raise ModelUnavailable(f"{name} is a file itself; --gguf is for directories and hubs")
        return _source_of(path)
    if path.is_dir():
        if gguf:
            return _source_of(path / gguf)
        if fault := fault_of(path):
            raise ModelUnavailable(f"{path} holds no whole model: {fault}")
        return Source(str(path))
    if gguf:
        return _source_of(_download(name, gguf))
    return Source(name)


def _source_of(path: Path) -> Source:
    return Source(str(path.parent), read_gguf(path))


def _download(name: str, gguf: str) -> Path:
    """A file of a hub model, with all parts of its set, in the hub's cache."""
    from transformers.utils.hub import cached_file

    with showing_progress(name):
        try:
            paths = [
                cached_file(name, part, tqdm_class=download_bar()) for part in part_names(gguf)
            ]
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelUnavailable(f"cannot fetch {gguf} of {name}: {reason}") from error
    return Path(str(paths[0]))
