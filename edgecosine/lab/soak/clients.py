"""Clients of a soak, each with its own profile, and counts of how their requests ended.

A request ends as served, refused with a time to retry, cancelled, expired, or with another error; a
request that has not ended is hung.
"""

from __future__ import annotations

import random
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.errors import RequestError
from edgecosine.lab.load_generator import read_answer
from edgecosine.protocol.api.request import Request, Sampling

_EXPIRED = "deadline_exceeded"


@dataclass(frozen=True, slots=True)
class ClientProfile:
    """The requests of one client."""

    name: str
    weight: float = 1.0
    """Relative number of its requests."""
    max_tokens: int = 64
    priority: int = 0
    deadline_s: float | None = None
    n: int = 1
    stream: bool = True
    cancelled_share: float = 0.0
    """Share of its requests that it cancels: half at their first text, half after a random time."""


PROFILES: tuple[ClientProfile, ...] = (
    ClientProfile("plain", weight=3),
    ClientProfile("urgent", priority=-1, stream=False),
    ClientProfile("hurried", deadline_s=4.0),
    ClientProfile("fickle", cancelled_share=0.7),
    ClientProfile("bulky", priority=3, n=2, max_tokens=96),
)
NORMAL = PROFILES[0]


@dataclass(slots=True)
class SoakCounts:
    """Numbers of requests by how they ended, over a span of time."""

    served: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Refusals with a time to retry, by code."""
    cancelled: int = 0
    expired: int = 0
    other_errors: Counter[str] = field(default_factory=Counter)
    """Errors without a time to retry, by code."""
    latencies_s: list[float] = field(default_factory=list)
    """Seconds from sending to the final message, of served requests."""

    @property
    def num_ended(self) -> int:
        """All requests that have ended."""
        errors = self.refused.total() + self.other_errors.total()
        return self.served + errors + self.cancelled + self.expired


class Clients:
    """One connection for each profile, and their running requests."""

    def __init__(
        self, clients: Sequence[Client], profiles: Sequence[ClientProfile], seed: int
    ) -> None:
        self._clients = {m.name: c for m, c in zip(profiles, clients, strict=True)}
        self._profiles = profiles
        self._rng = random.Random(seed)
        self._prompts = [text for texts in zoo.prompts().values() for text in texts]
        self.num_running = 0
        self._counts = SoakCounts()

    def draw(self) -> ClientProfile:
        """Draw the profile of the next request."""
        return self._rng.choices(self._profiles, [m.weight for m in self._profiles])[0]

    def take(self) -> SoakCounts:
        """Return the counts since the last call, and start new ones."""
        counts, self._counts = self._counts, SoakCounts()
        return counts

    async def ask(self, profile: ClientProfile) -> None:
        """Send one request and wait for its end."""
        tokens = self._rng.randint(profile.max_tokens // 4, profile.max_tokens)
        request = Request(
            client_id="",
            request_id=secrets.token_hex(8),
            kind="completion",
            prompt=self._rng.choice(self._prompts),
            max_tokens=tokens,
            sampling=Sampling(seed=self._rng.getrandbits(32)),
            ignore_eos=True,
            stream=profile.stream,
            n=profile.n,
            priority=profile.priority,
        )
        if profile.deadline_s is not None:
            request = replace(request, deadline_s=profile.deadline_s)
        cancel_after_s = self._cancel_after_s(profile)
        started = time.perf_counter()
        self.num_running += 1
        try:
            final = await read_answer(
                self._clients[profile.name], request, lambda _: cancel_after_s != 0.0,
                cancel_after_s=cancel_after_s or None,
            )  # fmt: skip
        except RequestError as error:
            self._count(error)
        else:
            if final is None:
                self._counts.cancelled += 1
            else:
                self._counts.served += 1
                self._counts.latencies_s.append(time.perf_counter() - started)
        finally:
            self.num_running -= 1

    def _cancel_after_s(self, profile: ClientProfile) -> float | None:
        """Seconds until the client cancels; 0: at the first text, None: never."""
        if self._rng.random() >= profile.cancelled_share:
            return None
        return self._rng.choice((0.0, self._rng.uniform(0.05, 3.0)))

    def _count(self, error: RequestError) -> None:
        if error.retry_after_s is not None:
            self._counts.refused[error.code] += 1
        elif error.code == _EXPIRED:
            self._counts.expired += 1
        else:
            self._counts.other_errors[error.code] += 1
