"""What the askers ask: bodies of every kind, from a seed alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from edgecosine.protocol.api.request import Request, Sampling

POLICIES: Final = ("edgecosine", "edgecosine", "specinfer", "specedge")
"""Drawn from: texts are the same under all, but the baselines never stop to speculate."""
FAULT_FREE: Final = "target-alone"
_CHOICES: Final = 2
_CHOICES_SHARE: Final = 0.15
_STREAM_SHARE: Final = 0.7
_AGAIN_SHARE: Final = 0.2
_CANCEL_SHARE: Final = 0.05
_STOP: Final = ("\n\n\n", "zzz")


@dataclass(frozen=True, slots=True)
class WorkloadItem:
    """One request to make, and what its asker does beside waiting.

    body           number of the body, on which alone its text depends
    is_repeated    asked again under the same id while it is at work, and once more when answered
    is_cancelled   given up at its first text
    """

    request: Request
    body: int
    is_repeated: bool = False
    is_cancelled: bool = False


def make_bodies(
    seed: int, count: int, prompts: Sequence[str], max_tokens: int
) -> tuple[Request, ...]:
    """Requests without name, asker and policy; every other one draws at temperature 0.8."""
    chance = random.Random(f"bodies:{seed}")
    return tuple(_body(chance, number, prompts, max_tokens) for number in range(count))


def _body(chance: random.Random, number: int, prompts: Sequence[str], max_tokens: int) -> Request:
    sampling = Sampling(temperature=0.8 * (number % 2), seed=chance.getrandbits(63))
    if chance.random() < 0.2:
        sampling = replace(sampling, presence_penalty=0.5)
    return Request(
        client_id="",
        request_id="",
        kind="completion",
        prompt=prompts[number % len(prompts)],
        max_tokens=max_tokens if chance.random() < 0.7 else max(1, max_tokens // 2),
        sampling=sampling,
        stop=_STOP if chance.random() < 0.2 else (),
        ignore_eos=True,
        n=_CHOICES if chance.random() < _CHOICES_SHARE else 1,
    )


def make_orders(seed: int, count: int, bodies: Sequence[Request]) -> tuple[WorkloadItem, ...]:
    """Bodies in turn; names are unique within the run."""
    chance = random.Random(f"orders:{seed}")
    return tuple(_order(chance, number, bodies) for number in range(count))


def _order(chance: random.Random, number: int, bodies: Sequence[Request]) -> WorkloadItem:
    body = number % len(bodies)
    is_cancelled = chance.random() < _CANCEL_SHARE
    request = replace(
        bodies[body],
        request_id=f"chaos-{number:05d}",
        stream=is_cancelled or chance.random() < _STREAM_SHARE,
        policy=chance.choice(POLICIES),
    )
    is_repeated = not is_cancelled and chance.random() < _AGAIN_SHARE
    return WorkloadItem(request, body, is_repeated, is_cancelled)
