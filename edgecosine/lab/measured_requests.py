"""Requests of a load, and what a client measured of their answers: plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from edgecosine.errors import RequestError
from edgecosine.protocol.api.request import Sampling

MAX_TOKENS = 128


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One request to send: a prompt of 48 tokens, and the exact length of its answer."""

    domain: str
    prompt: str
    policy: str
    sampling: Sampling
    max_tokens: int = MAX_TOKENS
    trace: bool = False
    """Whether the answer reports its rounds."""
    is_chat: bool = False
    """The prompt is a user's turn of any length; the model may end its answer early."""


@dataclass(frozen=True, slots=True)
class MeasuredAnswer:
    """One answer as its client measured it. An answer from outside the runtime has no rounds and no
    drafters."""

    domain: str
    policy: str
    text: str
    num_tokens: int
    elapsed_s: float
    """From sending the request to its final message."""
    first_text_s: float | None
    """From sending the request to its first text; None when the answer was not streamed."""
    queue_s: float = 0.0
    prefill_s: float = 0.0
    acceptance_histogram: tuple[int, ...] = (0,)
    drafters: dict[str, dict[str, int]] = field(default_factory=dict)
    plan: str = ""
    rounds: tuple[dict[str, Any], ...] = ()
    """`RoundTimes` of each round as plain data, if they were recorded."""
    began_s: float = 0.0
    """Origin of the rounds' times, by the target's performance counter."""
    num_speculative_rounds: int = 0
    """Rounds whose plan had drafters."""
    num_ahead_rounds: int = 0
    """Those of them whose drafts had been made ahead."""

    @property
    def inter_token_s(self) -> float | None:
        """Mean time between tokens after the first text; None when it is unknown."""
        if self.first_text_s is None or self.num_tokens < 2:
            return None
        return (self.elapsed_s - self.first_text_s) / (self.num_tokens - 1)

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second of the client's clock."""
        return self.num_tokens / self.elapsed_s

    @property
    def num_rounds(self) -> int:
        """Target passes after the prefill."""
        return sum(self.acceptance_histogram)

    @property
    def num_accepted(self) -> int:
        """Draft tokens that were committed."""
        return sum(n * count for n, count in enumerate(self.acceptance_histogram))

    def record(self) -> dict[str, Any]:
        """The answer as plain data, for a report."""
        return {**asdict(self), "tokens_per_s": self.tokens_per_s}


@dataclass(frozen=True, slots=True)
class Load:
    """The result of a run: answers in the order of their requests, and refusals."""

    answers: tuple[MeasuredAnswer, ...]
    refused: tuple[RequestError, ...]
    elapsed_s: float
    """From the start of the run to the last answer."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(a.num_tokens for a in self.answers)

    @property
    def tokens_per_s(self) -> float:
        """Throughput of the whole run."""
        return self.num_tokens / self.elapsed_s

    @property
    def acceptance_length(self) -> float:
        """Mean accepted draft tokens per round; 0 without rounds."""
        rounds = sum(a.num_rounds for a in self.answers)
        return sum(a.num_accepted for a in self.answers) / max(1, rounds)

    @property
    def ahead_hit_rate(self) -> float | None:
        """Share of the rounds with drafters whose drafts had been made ahead; None without any."""
        planned = sum(a.num_speculative_rounds for a in self.answers)
        return sum(a.num_ahead_rounds for a in self.answers) / planned if planned else None
