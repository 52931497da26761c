"""What the loops may ask of a model: the values and the two protocols, free of torch.

Engines are plain synchronous code, each called from one thread of its own. The target engine knows
nothing of drafters, and the draft engine nothing of verdicts: each gets the whole prefix and makes
its cache equal to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgecosine.protocol.api.request import Logprobs, Sampling
from edgecosine.protocol.wire.messages import SharedNoise
from edgecosine.protocol.wire.prompt_score import NO_PROMPT_SCORE, PromptScore
from edgecosine.protocol.wire.tree import TokenTree


@dataclass(frozen=True, slots=True)
class VerifyWork:
    """One session's part of a target pass.

    tokens      every committed token, the prompt first; the last one is the tree's root
    num_prompt  how many of them are the prompt
    """

    key: str
    tokens: Sequence[int]
    num_prompt: int
    tree: TokenTree
    sampling: Sampling
    top_logprobs: int | None = None
    """Alternatives to tell at each committed token; None computes no log-probabilities."""


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """What the target says to a tree: the accepted path, and one token of its own after it."""

    path: tuple[int, ...]
    """Tree nodes accepted, in depth order."""
    bonus: int
    logprobs: tuple[Logprobs, ...] = ()
    """One for each committed token, accepted ones first; none where the work asks for none."""


@dataclass(frozen=True, slots=True)
class Prefilling:
    """The pass fed a chunk of the prompt; ask again. `remaining` tokens are still to be fed."""

    remaining: int


@dataclass(frozen=True, slots=True)
class FailedWork:
    """This work cannot be judged, for this reason; the others of its pass were."""

    error: Exception


Outcome = VerificationResult | Prefilling | FailedWork


def verdict_of(outcome: Outcome) -> VerificationResult | None:
    """The verdict; None while the prompt is read.

    Raises what made the work fail.
    """
    if isinstance(outcome, FailedWork):
        raise outcome.error
    return outcome if isinstance(outcome, VerificationResult) else None


@dataclass(frozen=True, slots=True)
class PassResult:
    """What one target pass gave: an outcome per work, and the rows that it computed."""

    outcomes: list[Outcome]
    num_rows: int


class TargetEngine(Protocol):
    """Decides. Its answers depend on each work alone, never on who shares the pass."""

    @property
    def max_context(self) -> int:
        """Tokens that a sequence may have, prompt and answer together."""

    def step(self, batch: Sequence[VerifyWork]) -> PassResult:
        """Run one forward pass over all works and judge their trees.

        What it raises says nothing of a single work; no work has got further then. An EngineError
        is the end of the engine.
        """

    def release(self, key: str) -> None:
        """The session ended; its cache is kept for a following turn until the room is needed."""


@dataclass(frozen=True, slots=True)
class DraftWork:
    """One request's part of a drafting step: guess what follows `tokens`.

    num_tokens  steps of the model: as many levels deep, or as many as the best guess still lacks
    width       the most probable nodes that each step reads
    ahead       the tree that the target is verifying; with it, guess what comes after any of its
                outcomes, and stop when somebody waits
    shares      how much each of its outcomes counts (0 to 1, the root first); none: all alike
    """

    key: str
    tokens: Sequence[int]
    num_tokens: int
    width: int
    coupling: SharedNoise
    ahead: TokenTree | None = None
    shares: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class DraftResult:
    """Proposed tokens in topological order; `parents` is empty for a chain."""

    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    parents: tuple[int, ...] = ()
    hindsight: PromptScore = NO_PROMPT_SCORE


def never() -> bool:
    """Nobody waits."""
    return False


class DraftEngine(Protocol):
    """Guesses. Nothing that it says can make an answer wrong."""

    def draft(
        self, batch: Sequence[DraftWork], is_awaited: Callable[[], bool] = never
    ) -> list[DraftResult]:
        """Propose tokens for every work, batching the model's steps across them; none for a
        sequence beyond the engine's context.

        Works ahead end early, with what they have, once `is_awaited` says that others wait. What it
        raises says nothing of a single work, and the next call finds the engine as good as before.
        """

    def release(self, key: str) -> None:
        """The request ended; its cache may go."""
