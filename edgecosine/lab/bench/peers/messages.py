"""Messages between the benchmark and a peer's process, as lines of JSON.

The parent sends one `Setup` and reads one `PeerReady`; then each `PeerOrder` gets one `Reply`.
Prompts and answers are token ids of the target's tokenizer. llama.cpp's process, which runs in an
environment without this package, reads and writes the same fields as plain JSON.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Kind = Literal["plain", "drafted", "batched"]
"""plain: one prompt after another; drafted: the same with a draft model; batched: several sequences
in one batch."""


class Setup(msgspec.Struct, frozen=True):
    """Models to load, and prompts on which settings are tried."""

    target: str
    drafter: str | None
    """A model in the library's format; None: no drafted answers."""
    end_tokens: tuple[int, ...]
    trial_prompts: tuple[tuple[int, ...], ...]
    trial_tokens: int
    threads: int
    context: int
    """Maximum tokens of a sequence."""
    at_once: int
    """Sequences in a batch."""


class PeerReady(msgspec.Struct, frozen=True):
    """The first message. Every kind of answer is in `settings`, or in `refused` with a reason."""

    settings: dict[Kind, dict[str, Any]]
    """The fastest settings, which are used to answer orders."""
    refused: dict[Kind, str]
    trials_s: dict[str, float]
    """Seconds of each setting for the trial prompts."""
    failed: dict[str, str]
    """Settings that failed, with reasons."""
    versions: dict[str, str]


class PeerOrder(msgspec.Struct, frozen=True):
    """Prompts to answer greedily, each up to an end token or `max_tokens`."""

    kind: Kind
    prompts: tuple[tuple[int, ...], ...]
    max_tokens: int


class PeerAnswer(msgspec.Struct, frozen=True):
    """Tokens without the end token. Times are seconds since the start of the order, or of this
    answer if answers are computed one after another."""

    tokens: list[int]
    first_token_s: float
    elapsed_s: float


class Reply(msgspec.Struct, frozen=True):
    """Answers in the order of the prompts, and the time for all of them in seconds."""

    answers: list[PeerAnswer]
    elapsed_s: float
    error: str = ""
    """Reason when there are no answers."""
