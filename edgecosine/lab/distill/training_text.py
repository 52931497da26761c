"""The training text on disk: shards of conversations with the target's states."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecosine.lab.distill.conversations import Conversation, States, Tokens


@dataclass(frozen=True)
class TrainingText:
    """Many conversations: `tokens` and `states` are concatenated, the other columns have one entry
    for each conversation."""

    tokens: Tokens
    states: States
    lengths: NDArray[np.int64]
    prompts: NDArray[np.int64]
    domains: NDArray[np.str_]
    temperatures: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_answer_tokens(self) -> int:
        """Tokens on which a student is trained."""
        return len(self.states)

    @property
    def answers(self) -> Tokens:
        """The concatenated tokens of all answers."""
        starts = np.cumsum(self.lengths) - self.lengths
        spans = zip(starts + self.prompts, starts + self.lengths, strict=True)
        return np.concatenate([self.tokens[start:end] for start, end in spans])

    def conversations(self) -> list[Conversation]:
        """The single conversations; their arrays are views."""
        found, token, state = list[Conversation](), 0, 0
        for row in range(len(self)):
            length, prompt = int(self.lengths[row]), int(self.prompts[row])
            answer = length - prompt
            found.append(
                Conversation(
                    str(self.domains[row]),
                    float(self.temperatures[row]),
                    self.tokens[token : token + length],
                    prompt,
                    self.states[state : state + answer],
                )
            )
            token, state = token + length, state + answer
        return found


def save(path: Path, conversations: Sequence[Conversation]) -> None:
    """Write one shard, atomically."""
    scratch = path.with_suffix(".tmp.npz")
    np.savez(
        scratch,
        tokens=np.concatenate([c.tokens for c in conversations]),
        states=np.concatenate([c.states for c in conversations]),
        lengths=np.array([len(c.tokens) for c in conversations]),
        prompts=np.array([c.num_prompt for c in conversations]),
        domains=np.array([c.domain for c in conversations]),
        temperatures=np.array([c.temperature for c in conversations]),
    )
    scratch.replace(path)


def load(directory: Path) -> TrainingText:
    """All shards of a directory.

    Raises FileNotFoundError when there are none.
    """
    paths = tuple(path for path in sorted(directory.glob("*.npz")) if ".tmp" not in path.name)
    if not paths:
        raise FileNotFoundError(f"no training text in {directory}")
    return _load(paths)


@functools.lru_cache(maxsize=1)
def _load(paths: tuple[Path, ...]) -> TrainingText:
    """Cached, since every stage reads the same shards, which have gigabytes."""
    shards = [np.load(path) for path in paths]
    names = ("tokens", "states", "lengths", "prompts", "domains", "temperatures")
    return TrainingText(*(np.concatenate([shard[name] for shard in shards]) for name in names))
