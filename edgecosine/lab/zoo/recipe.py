"""The constants of the zoo: training data and lengths of each model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgecosine.lab.zoo.corpus import DOMAINS, CorpusSettings
from edgecosine.lab.zoo.distillation import PoolSettings
from edgecosine.lab.zoo.training import TrainSettings

GENERALIST = "generalist"
DRAFTERS: dict[str, tuple[str, ...]] = {GENERALIST: DOMAINS} | {name: (name,) for name in DOMAINS}


@dataclass(frozen=True)
class ZooRecipe:
    """All settings by which the zoo is made."""

    name: str
    corpus: CorpusSettings
    target: TrainSettings
    drafter: TrainSettings
    pool: PoolSettings
    tokenizer_characters: int = 2_500_000
    hard_share: float = 0.1
    target_seed: int = 1
    drafter_seed: int = 100
    prompts: int = 32
    new_tokens: int = 128
    loss_windows: int = 64
    loss_length: int = 256
    temperature: float = 0.8


FULL = ZooRecipe(
    name="full",
    corpus=CorpusSettings(),
    target=TrainSettings(
        steps=1600,
        horizon=1800,
        rows=8,
        length=256,
        accumulate=1,
        warm_up=60,
        muon_lr=0.02,
        adam_lr=0.003,
    ),
    drafter=TrainSettings(
        steps=320, rows=12, length=192, accumulate=1, warm_up=50, muon_lr=0.02, adam_lr=0.004
    ),
    pool=PoolSettings(),
)
QUICK = ZooRecipe(
    name="quick",
    corpus=CorpusSettings(
        characters_per_domain=400_000, longest_document=20_000, home_dialogues=800
    ),
    target=TrainSettings(
        steps=12,
        rows=4,
        length=128,
        accumulate=1,
        warm_up=4,
        adam_lr=0.003,
        log_every=4,
        compiled=False,
    ),
    drafter=TrainSettings(
        steps=8,
        rows=4,
        length=96,
        accumulate=1,
        warm_up=2,
        adam_lr=0.004,
        log_every=4,
        compiled=False,
    ),
    pool=PoolSettings(continuations=16, texts=16, length=96, batch=8),
    tokenizer_characters=400_000,
    prompts=8,
    new_tokens=32,
    loss_windows=4,
)


@dataclass(frozen=True)
class ZooPaths:
    """Directories of the intermediate files (`scratch`) and of the finished zoo (`zoo`)."""

    scratch: Path
    zoo: Path

    def tokens(self, domain: str) -> Path:
        return self.scratch / "corpus" / f"{domain}.npy"

    def held_out(self, domain: str) -> Path:
        return self.scratch / "corpus" / f"{domain}.held_out.json"

    def pool(self, kind: str, domain: str, part: str) -> Path:
        return self.scratch / "pools" / f"{domain}.{kind}.{part}.npy"

    def report(self, stage: str) -> Path:
        return self.scratch / "reports" / f"{stage}.json"

    @property
    def tokenizer(self) -> Path:
        return self.scratch / "tokenizer"

    @property
    def prompts(self) -> Path:
        return self.zoo / "prompts.json"
