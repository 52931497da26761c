"""Inputs of the comparison with peers: settings, prompts, and models in the peers' formats."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edgecosine import models, zoo
from edgecosine.engine.loading.model_files import find_model
from edgecosine.errors import LabError
from edgecosine.lab.bench.peers.figures import peer_figures
from edgecosine.lab.bench.peers.plain_checkpoint import (
    PlainCheckpoint,
    read_checkpoint,
    write_plain_checkpoint,
)
from edgecosine.lab.bench.peers.server import PeerPrompt
from edgecosine.lab.distill.prompts import HELD_OUT
from edgecosine.lab.figures import Figure, Keep, Notify

TARGET: Final = models.DEFAULT_TARGET
GENERALIST: Final = f"{TARGET}/generalist"
NUM_TRIALS: Final = 2
"""Prompts of each domain on which settings are tried: the last ones, which are not measured."""
CONTEXT: Final = 1024
EIGHT: Final = 8


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """Models and requests of the comparison."""

    target: str = TARGET
    gguf: str = ""
    """The target's GGUF file for the peers, if `target` is not one."""
    drafters: tuple[str, ...] = models.drafters_of(TARGET)
    generalist: str = GENERALIST
    """The peers' draft model, and the source of an adversarial drafter; empty: none."""
    prompts_per_domain: int = 8
    eight_turns: int = 5
    """Repetitions with 32 prompts, eight at a time."""
    max_tokens: int = 128
    trial_tokens: int = 32
    """Tokens in each answer to a trial prompt."""
    dtype: str = "auto"
    """Data type of EdgeCoSine's nodes; peers choose theirs by trials."""
    target_cores: str = ""
    drafter_cores: str = ""


@dataclass(slots=True)
class PeersRecord:
    """The results of the comparison so far."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Servers that were not measured completely, with reasons."""
    notes: dict[str, Any] = field(default_factory=dict)

    def figures(self) -> dict[str, Figure]:
        """The figures of the runs."""
        return peer_figures(self.runs, self.refused)

    def write(self, keep: Keep) -> None:
        """Save the results so far."""
        keep(self.figures(), self.runs, notes=self.notes, refused=self.refused)

    def refuse(self, server: str, reason: str, notify: Notify) -> None:
        """Leave a server out and report the reason."""
        self.refused[server] = reason
        notify(f"left out: {server}: {reason}")


def held_out(tokenizer: Any, per_domain: int) -> tuple[list[PeerPrompt], list[PeerPrompt]]:
    """Returns the prompts to measure, whose domains alternate, and those for trials of settings.

    Raises LabError when there are too few.
    """
    texts: dict[str, list[str]] = json.loads(HELD_OUT.read_text())
    if per_domain > (most := min(map(len, texts.values())) - NUM_TRIALS):
        raise LabError(f"there are {most} prompts of each domain to measure with")

    def prompts(numbers: Sequence[int]) -> Iterator[PeerPrompt]:
        for number, (domain, each) in itertools.product(numbers, texts.items()):
            yield in_template(tokenizer, domain, each[number])

    return list(prompts(range(per_domain))), list(prompts(range(-NUM_TRIALS, 0)))


def in_template(tokenizer: Any, domain: str, text: str) -> PeerPrompt:
    """A user's turn, with its tokens in the model's chat template."""
    turn = [{"role": "user", "content": text}]
    whole = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer.encode(whole, add_special_tokens=False)
    return PeerPrompt(domain, text, tuple(tokens))


def target_file(settings: PeerSettings) -> Path:
    """Path of the GGUF file that peers read.

    Raises LabError when there is none, and ModelUnavailable when it cannot be fetched.
    """
    found = Path(settings.gguf) if settings.gguf else _model(settings.target)
    if found is None or not found.is_file():
        raise LabError(
            f"llama.cpp needs a GGUF file: {settings.gguf or settings.target} is not one"
        )
    return found.resolve()


def _model(name: str) -> Path | None:
    """Path of a directory or GGUF file; models of the catalogue are fetched.

    Raises ModelUnavailable.
    """
    return models.obtain(name) or find_model(name, zoo.DIRECTORY)


def plain_generalist(
    settings: PeerSettings, target: Path, directory: Path
) -> PlainCheckpoint | None:
    """The generalist in the peers' formats, written below `directory`; None without a generalist.

    Raises LabError when the model is not found.
    """
    if settings.generalist in ("", models.NGRAM):
        return None
    path = _model(settings.generalist)
    if path is None:
        raise LabError(f"there is no model {settings.generalist}; use --generalist '' for none")
    return write_plain_checkpoint(read_checkpoint(path), target, directory)


def digest(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
