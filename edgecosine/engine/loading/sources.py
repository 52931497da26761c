"""Finds the files of a model by its name.

A name is looked up in the zoo, in the catalogue, as a directory or GGUF file, and as a hub id, in
this order.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgecosine import models, zoo
from edgecosine.engine.loading.gguf_file import (
    BASE_DIGEST,
    GgufModel,
    is_gguf,
    part_names,
    read_gguf,
)
from edgecosine.engine.loading.model_files import fault_of
from edgecosine.engine.loading.progress import download_bar, showing_progress
from edgecosine.errors import ModelUnavailable
from edgecosine.places import expanded

logger = logging.getLogger(__name__)

_MOST_BASES: Final = 2
"""A specialist changes the generalist, which was cut from the target."""


@dataclass(frozen=True, slots=True)
class Source:
    """A GGUF model, or a directory or hub id with a checkpoint of safetensors.

    `base` is the model that a drafter was cut from, or that a specialist changes.
    """

    where: str
    gguf: GgufModel | None = None
    base: Source | None = None

    @property
    def whole(self) -> Source:
        """The last base of the chain, or this model."""
        return self if self.base is None else self.base.whole


def locate(name: str, gguf: str = "", *, needs_weights: bool = True) -> Source:
    """The source with the name `name`; `gguf` names a file in a directory or hub model.

    A model of the catalogue is downloaded if it is not on this machine.
    Raises ModelUnavailable for an incomplete directory or file.
    """
    if name in zoo.names():
        return Source(str(zoo.DIRECTORY / name))
    path = models.obtain(name) or expanded(name)
    if is_gguf(path) and not path.is_dir():
        if gguf:
            raise ModelUnavailable(
                f"{name} is a file; --gguf names a file in a directory or hub model"
            )
        return _source_of(path)
    if path.is_dir():
        if gguf:
            return _source_of(path / gguf)
        if fault := fault_of(path, needs_weights=needs_weights):
            raise ModelUnavailable(f"{path} is not a complete model: {fault}")
        return Source(str(path))
    if gguf:
        return _source_of(_download(name, gguf))
    return Source(name)


def _source_of(path: Path, depth: int = 0) -> Source:
    model = read_gguf(path)
    if not model.base:
        return Source(str(path.parent), model)
    if depth == _MOST_BASES:
        raise ModelUnavailable(f"{path.name}: its chain of bases is longer than {_MOST_BASES}")
    base = _source_of(_base_of(model), depth + 1)
    if (wanted := model.metadata.get(BASE_DIGEST)) is not None and wanted != _sha256(base):
        raise ModelUnavailable(
            f"{path.name} was made for another version of {model.base}; get both from the "
            "same source"
        )
    return Source(str(path.parent), model, base)


def _base_of(model: GgufModel) -> Path:
    """The file of a drafter's base: one in the same directory, or a model of the catalogue."""
    beside = model.paths[0].with_name(Path(model.base).name)
    path = beside if beside.is_file() else models.obtain(model.base)
    if path is None:
        raise ModelUnavailable(
            f"{model.paths[0].name} needs {model.base!r}, which is neither a file in its directory "
            "nor a model of the catalogue"
        )
    return path


def _sha256(source: Source) -> str:
    assert source.gguf is not None, "bases are GGUF models"
    with source.gguf.paths[0].open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(name: str, gguf: str) -> Path:
    """Download a file of a hub model, with all parts of its set; the path of the first part."""
    with showing_progress(name):
        paths = [hub_file(name, part) for part in part_names(gguf)]
    for part, path in zip(part_names(gguf), paths, strict=True):
        if path is None:
            raise ModelUnavailable(f"{name} has no file {part} in the model hub")
    assert paths[0] is not None, "checked above"
    return paths[0]


def hub_file(name: str, file: str) -> Path | None:
    """The file of a hub model, downloaded if it is not in the cache; None where the model has no
    such file.

    Raises ModelUnavailable without a network, and for a model that the hub does not have.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    _require_hub(name, file)
    try:
        return Path(hf_hub_download(name, file, tqdm_class=download_bar()))
    except LocalEntryNotFoundError as error:
        raise ModelUnavailable(_unreachable(name, file, error)) from error
    except EntryNotFoundError:
        return None
    except GatedRepoError as error:
        reason = "accept its terms on the model hub, and set HF_TOKEN"
        raise ModelUnavailable(f"cannot download {name}: {reason}") from error
    except RepositoryNotFoundError as error:
        known = ", ".join((*zoo.names(), *models.names()))
        reason = "the model hub has no such model, or it is private (set HF_TOKEN)"
        raise ModelUnavailable(f"there is no {name!r}: {reason}; known: {known}") from error
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelUnavailable(f"cannot download {file} of {name}: {reason}") from error


def _require_hub(name: str, file: str) -> None:
    """Raises ModelUnavailable where the hub is needed for a file and cannot be reached.

    `hf_hub_download` would try again for half a minute. It reports what the hub answers.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(try_to_load_from_cache(name, file), str):
        return
    logger.info("asking the model hub: model=%s file=%s", name, file)
    try:
        get_hf_file_metadata(hf_hub_url(name, file))
    except HfHubHTTPError:
        return
    except Exception as error:  # of the HTTP library, which differs by release
        raise ModelUnavailable(_unreachable(name, file, error)) from error


def _unreachable(name: str, file: str, error: BaseException) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"cannot download {file} of {name}: the model hub cannot be reached, and the file is not "
        f"in its cache ({reason})"
    )
