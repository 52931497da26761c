"""The interfaces of the target engine and the draft engine, and their values. No torch.

Engines are synchronous; each is called from one thread of its own. The target engine is unaware of
drafters, and the draft engine of verification results: each receives the whole prefix and updates
its cache to match.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from edgecosine.fusion.committee.draw_rule import Reconstruction
from edgecosine.protocol.api.request import Logprobs, Sampling
from edgecosine.protocol.wire.messages import SharedNoise
from edgecosine.protocol.wire.prompt_score import NO_PROMPT_SCORE, PromptScore
from edgecosine.protocol.wire.tree import TokenTree


class BatchRule(Protocol):
    """Restricts a pass to works with the same rule, and among these to some."""

    def choose(self, rows: Sequence[int], pass_s: Callable[[int], float]) -> Sequence[int]:
        """The places of the works that the next pass takes, at least one; `rows` are those of the
        works with this rule, oldest first, pass_s(n) the expected time of a pass of n rows."""


@dataclass(frozen=True, slots=True)
class TokenMask:
    """A set of tokens; bit t % 8 of byte t // 8 stands for token t."""

    bits: bytes

    @property
    def only(self) -> int | None:
        """The one token of the set; None if it has none or more."""
        value = int.from_bytes(self.bits, "little")
        return value.bit_length() - 1 if value and not value & (value - 1) else None

    def __contains__(self, token: int) -> bool:
        return token >> 3 < len(self.bits) and self.bits[token >> 3] >> (token & 7) & 1 == 1


class Constraint(Protocol):
    """The form that one answer must have. Its results depend only on the tokens."""

    def allowed(self, answer: Sequence[int]) -> TokenMask | None:
        """The tokens that may follow the answer's tokens; None: all."""

    def forced(self, answer: Sequence[int], most: int) -> tuple[int, ...]:
        """Tokens that follow without an alternative, at most `most`."""

    def cut(self, answer: Sequence[int], tree: TokenTree) -> TokenTree:
        """The part of a tree after the answer that has the form."""


class VerifyWork(msgspec.Struct, frozen=True):
    """One session's part of a forward pass of the target.

    tokens      all committed tokens, the prompt first; the last one is the root of the tree
    num_prompt  number of prompt tokens
    """

    key: str
    tokens: Sequence[int]
    num_prompt: int
    tree: TokenTree
    sampling: Sampling
    top_logprobs: int | None = None
    """Alternatives to report for each committed token; None: no log-probabilities."""
    scores_prompt: bool = False
    """Whether to report those of the prompt's tokens too, which reads the whole prompt again."""
    constraint: Constraint | None = None
    """What restricts the target's draws; used by nothing else during a step."""
    batching: BatchRule | None = None
    """With which other works it may share a pass; None: with all."""
    reconstruction: Reconstruction = ""
    """How a committee replaces what its members do not list; empty: it is exact."""


@dataclass(frozen=True, slots=True)
class CommitteeRound:
    """Times and counts of a committee's verification.

    seconds   from the request to the answer of each member, by name
    slowest   the member that answered last; compute_s is the part of its time for computation
    elapsed_s  of the whole verification, with the draws and further requests
    num_rows  rows that other nodes listed, and `num_bytes` that they sent for them
    num_asked_back  nodes of the tree that needed more than the first lists
    num_dense       nodes that needed whole rows
    lost            sum of w_i eps_i over `num_drawn` draws, where the policy reconstructs rows
    differing       sum over these draws of the most probability to differ for that
    """

    seconds: Mapping[str, float]
    slowest: str
    compute_s: float
    elapsed_s: float = 0.0
    num_rows: int = 0
    num_bytes: int = 0
    num_drawn: int = 0
    num_asked_back: int = 0
    num_dense: int = 0
    lost: float = 0.0
    differing: float = 0.0
    is_exact: bool = True


class VerificationResult(msgspec.Struct, frozen=True):
    """The accepted path of a tree, and the target's own token after it."""

    path: tuple[int, ...]
    """Accepted nodes of the tree, by depth."""
    bonus: int
    logprobs: tuple[Logprobs, ...] = ()
    """One for each committed token, accepted ones first; empty unless the work asks for them."""
    prompt_logprobs: tuple[Logprobs, ...] = ()
    """One for each token of the prompt but the first, where the work scores its prompt."""
    committee: CommitteeRound | None = None
    """Of a committee of several models."""


class Prefilling(msgspec.Struct, frozen=True):
    """The step read a chunk of the prompt; `remaining` tokens are left for further steps."""

    remaining: int


class FailedWork(msgspec.Struct, frozen=True):
    """This work failed with `error`; the other works of the step are not affected."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Wanted:
    """The parts of a row that a committee's member lists: its `num_scores` best tokens after noise,
    its `num_logits` most probable ones, and the logits of the tokens `also`; or the whole row."""

    noise: SharedNoise = field(default_factory=SharedNoise)
    num_scores: int = 0
    num_logits: int = 0
    also: tuple[int, ...] = ()
    is_dense: bool = False


class JudgeWork(VerifyWork, frozen=True):
    """A work whose rows are listed, and not drawn from."""

    wanted: Wanted = msgspec.field(default_factory=Wanted)


Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RowLists:
    """The lists of some rows, as `Wanted` describes them.

    lse           log-sum-exp of each row, [rows]
    ids, logits   listed tokens, those by score first, [rows, tokens]
    score_bounds  no other token has a higher score (z - lse) / T + g, [rows]; None without scores
    logit_bounds  no other token has a higher logit, [rows]; None without a list by logit
    also          logits of the tokens `also`, [rows, tokens]; [rows, vocabulary] for whole rows
    """

    lse: Floats
    ids: npt.NDArray[np.uint32]
    logits: Floats
    score_bounds: Floats | None
    logit_bounds: Floats | None
    also: Floats


Outcome = VerificationResult | RowLists | Prefilling | FailedWork


def expect_verified(outcome: Outcome) -> VerificationResult | None:
    """The verification result; None during prefill.

    Raises the error of a failed work.
    """
    if isinstance(outcome, FailedWork):
        raise outcome.error
    return outcome if isinstance(outcome, VerificationResult) else None


class StepResult(msgspec.Struct, frozen=True):
    """An outcome for each work of a step, and the number of rows of its forward pass."""

    outcomes: list[Outcome]
    num_rows: int


@dataclass(frozen=True, slots=True)
class KvUse:
    """The use of a KV cache, and of the prefixes that ended sessions left in it; in tokens."""

    num_used: int = 0
    """Tokens of running sessions."""
    capacity: int = 1
    num_looked_up: int = 0
    """Tokens that sessions began with, since the start."""
    num_found: int = 0
    """Those of them that the cache had."""


class TargetEngine(Protocol):
    """Verifies drafts. An outcome depends on its work alone, not on the rest of the batch."""

    @property
    def max_context(self) -> int:
        """Most tokens of a sequence, prompt and answer together."""

    @property
    def kv_use(self) -> KvUse:
        """The use of the KV cache; may be read from any thread."""

    def step(self, batch: Sequence[VerifyWork]) -> StepResult:
        """Run one forward pass over all works and verify their trees.

        When it raises, no work has advanced, and the error belongs to no single work. After an
        EngineError the engine cannot be used.
        """

    def release(self, key: str) -> None:
        """End a session; its cache is kept for a following turn until the slot is needed."""


class MemberEngine(TargetEngine, Protocol):
    """A target engine that also lists rows, for works that are `JudgeWork`s."""

    def reveal(self, key: str, node: int, wanted: Wanted) -> RowLists | None:
        """More about one row (-1: the root's) of the latest judged work of `key`, with the noise of
        that work; None if the row is no longer kept."""


@dataclass(frozen=True, slots=True)
class DraftWork:
    """One request's part of a call of `DraftEngine.draft`: draft tokens that follow `tokens`.

    num_tokens  steps of the model, one level of the tree each
    width       number of nodes that each step reads, the most probable ones
    ahead       the tree that the target is verifying; the draft then continues all its nodes
    shares      weight (0 to 1) of the root and of each node of `ahead`; empty: all equal
    num_steps   `num_steps` of the former, interrupted call for the same draft
    """

    key: str
    tokens: Sequence[int]
    num_tokens: int
    width: int
    noise: SharedNoise
    ahead: TokenTree | None = None
    shares: tuple[float, ...] = ()
    num_steps: int = 0


@dataclass(frozen=True, slots=True)
class DraftResult:
    """Draft tokens, parents before children; `parents` is empty for a chain. A draft that is not
    complete is continued by a call with its `num_steps`: those that grew its tree."""

    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    parents: tuple[int, ...] = ()
    prompt_score: PromptScore = NO_PROMPT_SCORE
    is_complete: bool = True
    num_steps: int = 0


def never(num_complete: int) -> bool:  # noqa: ARG001 -- the signature of the callback
    """Always False: a call ends when all drafts are complete."""
    return False


class DraftEngine(Protocol):
    """Drafts tokens. A draft affects the speed of an answer, never its text."""

    def draft(
        self, batch: Sequence[DraftWork], is_interrupted: Callable[[int], bool] = never
    ) -> list[DraftResult]:
        """Draft tokens for every work, in steps that batch all works; an empty draft for a
        sequence longer than the engine's context.

        `is_interrupted` is called after each step with the number of complete drafts; the call
        ends when it returns True. An error belongs to no single work; the engine can be used
        afterwards.
        """

    def release(self, key: str) -> None:
        """End a request; its cache may be reused."""
