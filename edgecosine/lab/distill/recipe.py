"""The settings of a training of the drafters, and the paths of its files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgecosine.lab.distill.losses import Settings
from edgecosine.lab.distill.prompts import DOMAINS, GENERALIST
from edgecosine.models import DEFAULT_TARGET
from edgecosine.models.catalogue import NGRAM_FILE

DRAFTERS = (GENERALIST, *DOMAINS)


def _generalist() -> Settings:
    return Settings(epochs=2.0, learning_rate=6e-4)


def _specialist() -> Settings:
    return Settings(epochs=1.0, learning_rate=1e-3, warm_up=10)


@dataclass(frozen=True)
class DistillRecipe:
    """All settings of a training of the drafters.

    layers         layers of the target from which a drafter is made
    kind           GGML's format of the generalist's matrices; Q4_1 is rounded for its inputs
    rank           rank of a specialist's changes, which are stored as Q8_0
    text_tokens    answer tokens that the target writes, in shards of `shard_tokens`
    replay         share of other domains' conversations in the training of a specialist
    """

    target: str = DEFAULT_TARGET
    layers: tuple[int, ...] = (0, 1, 2, 28, 29)
    shortlist: int = 8192
    kind: str = "Q4_1"
    rank: int = 32
    text_tokens: int = 1_500_000
    shard_tokens: int = 20_000
    slots: int = 48
    max_answer: int = 256
    held_out_answer: int = 128
    generalist: Settings = field(default_factory=_generalist)
    specialist: Settings = field(default_factory=_specialist)
    replay: float = 0.2
    seed: int = 1


def gpu_recipe() -> DistillRecipe:
    """The recipe for a large GPU: more text, larger batches, higher learning rate, more epochs."""
    return DistillRecipe(
        slots=1024, text_tokens=4_000_000, shard_tokens=100_000,
        generalist=Settings(epochs=8.0, learning_rate=1.2e-3, batch_tokens=8192, warm_up=100),
        specialist=Settings(epochs=3.0, learning_rate=6e-4, batch_tokens=8192, warm_up=30),
    )  # fmt: skip


def toy_recipe() -> DistillRecipe:
    """A recipe that runs all stages in a minute, for any target; its drafters are useless."""
    once = Settings(epochs=1.0, learning_rate=1e-3, batch_tokens=512, warm_up=2)
    return DistillRecipe(
        layers=(0, 1), shortlist=64, text_tokens=1200, shard_tokens=600, slots=8, max_answer=24,
        held_out_answer=12, generalist=once, specialist=once, rank=32,
    )  # fmt: skip


@dataclass(frozen=True)
class DistillPaths:
    """Paths of a training: `scratch` has its checkpoints, `out` the drafters."""

    scratch: Path
    out: Path

    @property
    def text(self) -> Path:
        """Shards of training text."""
        return self.scratch / "text"

    @property
    def shortlist(self) -> Path:
        """The tokens of the drafters' output layers."""
        return self.scratch / "shortlist.pt"

    def checkpoint(self, drafter: str) -> Path:
        """Checkpoint of a drafter in training."""
        return self.scratch / f"{drafter}.pt"

    def drafter(self, name: str) -> Path:
        """File of a finished drafter."""
        return self.out / f"{name}.gguf"

    @property
    def ngrams(self) -> Path:
        """The file of n-grams."""
        return self.out / NGRAM_FILE

    @property
    def report(self) -> Path:
        """Path of the stages' measurements."""
        return self.scratch / "report.json"
