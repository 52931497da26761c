"""Texts of the four domains from the files of a Debian machine with CPython, split by hash."""

from __future__ import annotations

import gzip
import hashlib
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgecosine.lab.zoo.home import home_documents
from edgecosine.lab.zoo.roff import is_mdoc, strip_roff

DOMAINS = ("python", "manual", "legal", "home")
MANUAL_SECTIONS = "123578"
HELD_OUT_SHARE = 0.05
HELP = {
    "python": "install the CPython standard library (Debian: libpython3-stdlib)",
    "manual": "install manual pages (Debian: manpages, manpages-dev, git-man); slim container "
    "images leave them out: remove the exclusion in /etc/dpkg/dpkg.cfg.d first",
    "legal": "install base-files, which brings /usr/share/common-licenses",
    "home": "generated, cannot be missing",
}
_SKIPPED_PARTS = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data",
    "__pycache__", "lib2to3", "ensurepip",
}  # fmt: skip


class MissingSourceError(RuntimeError):
    """A domain has no text on this machine."""


@dataclass(frozen=True)
class CorpusSettings:
    """Upper limits of sizes, in characters; those of the home domain are in dialogues."""

    longest_document: int = 40_000
    characters_per_domain: int = 13_050_000
    smallest_domain: int = 150_000
    home_dialogues: int = 16_000
    home_seed: int = 20_240
    man_root: Path = Path("/usr/share/man")
    licence_root: Path = Path("/usr/share/common-licenses")
    doc_root: Path = Path("/usr/share/doc")


@dataclass(frozen=True)
class Split:
    """The documents of one domain."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def document_hash(text: str) -> bytes:
    """Hash of the text with white space folded, so that re-wrapped copies coincide."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


def is_held_out(text: str) -> bool:
    """Whether the document is excluded from training; this depends only on its text."""
    return int.from_bytes(document_hash(text)[:4], "big") < HELD_OUT_SHARE * 2**32


def python_documents(_: CorpusSettings) -> Iterator[str]:
    """Sources of the standard library, without tests and tables."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not _SKIPPED_PARTS.intersection(path.relative_to(root).parts):
            yield path.read_text(encoding="utf-8", errors="replace")


def manual_documents(settings: CorpusSettings) -> Iterator[str]:
    """English manual pages as plain text."""
    for section in MANUAL_SECTIONS:
        for path in sorted((settings.man_root / f"man{section}").glob("*")):
            # The cloud SDK alone brings sixteen thousand near-identical pages.
            if path.name.startswith("gcloud") or path.is_symlink():
                continue
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            source = raw.decode("utf-8", errors="replace")
            if len(source) > 400 and not is_mdoc(source) and not source.startswith(".so "):
                yield strip_roff(source)


def legal_documents(settings: CorpusSettings) -> Iterator[str]:
    """Licence texts and the copyright files of installed packages."""
    paths = sorted(settings.licence_root.glob("*")) + sorted(settings.doc_root.glob("*/copyright"))
    for path in paths:
        if path.is_file():
            yield path.read_text(encoding="utf-8", errors="replace")


def _home(settings: CorpusSettings) -> Iterator[str]:
    return home_documents(settings.home_dialogues, settings.home_seed)


_SOURCES: dict[str, Callable[[CorpusSettings], Iterator[str]]] = {
    "python": python_documents,
    "manual": manual_documents,
    "legal": legal_documents,
    "home": _home,
}


def _clean(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\ufffd", "").replace("\t", "    ")
    return re.sub(r"[ ]+\n", "\n", text).replace("<|endoftext|>", "")


def domain_documents(domain: str, settings: CorpusSettings) -> list[str]:
    """Documents of one domain without duplicates, in the order of their hashes.

    Raises MissingSourceError when this machine has too little text of the domain.
    """
    unique: dict[bytes, str] = {}
    for raw in _SOURCES[domain](settings):
        text = raw if domain == "home" else _clean(raw)
        if len(text) >= 200:
            cut = text[: settings.longest_document]
            unique.setdefault(document_hash(cut), cut)
    size = sum(map(len, unique.values()))
    if size < settings.smallest_domain:
        raise MissingSourceError(f"only {size} characters of `{domain}` text: {HELP[domain]}")
    return [unique[key] for key in sorted(unique)]


def _until(texts: Iterator[str], characters: int) -> Iterator[str]:
    size = 0
    while size < characters and (text := next(texts, None)) is not None:
        size += len(text)
        yield text


def split_documents(documents: list[str], settings: CorpusSettings) -> Split:
    """Divide documents by hash into training and held-out ones, up to the given sizes."""
    train = (text for text in documents if not is_held_out(text))
    held_out = (text for text in documents if is_held_out(text))
    most = settings.characters_per_domain
    return Split(tuple(_until(train, most)), tuple(_until(held_out, most)))
