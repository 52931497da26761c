"""The requests of a chaos run: bodies of all kinds, generated from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from edgecosine.protocol.api.request import Request, Sampling

POLICIES: Final = ("edgecosine", "edgecosine", "specinfer", "specedge")
"""Policies to draw from. All give the same texts; the baselines never stop speculating."""
FAULT_FREE: Final = "target-alone"
_CHOICES: Final = 2
_CHOICES_SHARE: Final = 0.15
_STREAM_SHARE: Final = 0.7
_REPEATED_SHARE: Final = 0.2
_CANCEL_SHARE: Final = 0.05
_STOP: Final = ("\n\n\n", "zzz")


@dataclass(frozen=True, slots=True)
class WorkloadItem:
    """One request to send, and what its client does besides waiting.

    body           number of the body, which alone determines its text
    is_repeated    sent again under the same id while it runs, and once more when answered
    is_cancelled   cancelled at its first text
    """

    request: Request
    body: int
    is_repeated: bool = False
    is_cancelled: bool = False


def make_bodies(
    seed: int, count: int, prompts: Sequence[str], max_tokens: int
) -> tuple[Request, ...]:
    """Requests without id, client and policy; every other one samples at temperature 0.8."""
    rng = random.Random(f"bodies:{seed}")
    return tuple(_body(rng, number, prompts, max_tokens) for number in range(count))


def _body(rng: random.Random, number: int, prompts: Sequence[str], max_tokens: int) -> Request:
    sampling = Sampling(temperature=0.8 * (number % 2), seed=rng.getrandbits(63))
    if rng.random() < 0.2:
        sampling = replace(sampling, presence_penalty=0.5)
    return Request(
        client_id="",
        request_id="",
        kind="completion",
        prompt=prompts[number % len(prompts)],
        max_tokens=max_tokens if rng.random() < 0.7 else max(1, max_tokens // 2),
        sampling=sampling,
        stop=_STOP if rng.random() < 0.2 else (),
        ignore_eos=True,
        n=_CHOICES if rng.random() < _CHOICES_SHARE else 1,
    )


def make_workload(seed: int, count: int, bodies: Sequence[Request]) -> tuple[WorkloadItem, ...]:
    """`count` requests, whose bodies take turns; their ids are unique within the run."""
    rng = random.Random(f"orders:{seed}")
    return tuple(_item(rng, number, bodies) for number in range(count))


def _item(rng: random.Random, number: int, bodies: Sequence[Request]) -> WorkloadItem:
    body = number % len(bodies)
    is_cancelled = rng.random() < _CANCEL_SHARE
    request = replace(
        bodies[body],
        request_id=f"chaos-{number:05d}",
        stream=is_cancelled or rng.random() < _STREAM_SHARE,
        policy=rng.choice(POLICIES),
    )
    is_repeated = not is_cancelled and rng.random() < _REPEATED_SHARE
    return WorkloadItem(request, body, is_repeated, is_cancelled)
