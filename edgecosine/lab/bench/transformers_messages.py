"""Messages between the benchmark and its transformers process, as lines of JSON."""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["batched", "plain", "assisted"]


class Setting(msgspec.Struct, frozen=True):
    """Settings of generation; `draft_length` None is transformers' default."""

    dtype: str
    draft_length: int | None = None


class TransformersOrder(msgspec.Struct, frozen=True):
    """Prompts to answer greedily with exactly `max_tokens` each: in one batch, one at a time, or
    one at a time with the best drafter for the prompt's domain."""

    kind: Kind
    domains: tuple[str, ...]
    prompts: tuple[str, ...]
    max_tokens: int


class TransformersReady(msgspec.Struct, frozen=True):
    """The first message: the fastest setting of each kind, and the seconds of all trials."""

    settings: dict[Kind, Setting]
    trials_s: dict[str, float]


class TransformersAnswer(msgspec.Struct, frozen=True):
    """One text; times in seconds since its generation began."""

    text: str
    num_tokens: int
    first_text_s: float
    elapsed_s: float
