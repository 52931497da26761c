"""Clients of a soak: each asks in a way of its own, and every request's end is put down as a kind.

A request ends as served, refused with a hint when to come again, cancelled, expired, or as another
error; what has not ended is hung.
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
class Manner:
    """How one client asks."""

    name: str
    weight: float = 1.0
    """Of its requests among all."""
    max_tokens: int = 64
    priority: int = 0
    deadline_s: float | None = None
    n: int = 1
    stream: bool = True
    cancelled_share: float = 0.0
    """Of its requests that it cancels: half of these at their first text, half before."""


MANNERS: tuple[Manner, ...] = (
    Manner("plain", weight=3),
    Manner("urgent", priority=-1, stream=False),
    Manner("hurried", deadline_s=4.0),
    Manner("fickle", cancelled_share=0.7),
    Manner("bulky", priority=3, n=2, max_tokens=96),
)
NORMAL = MANNERS[0]


@dataclass(slots=True)
class SoakCounts:
    """How the requests of some time ended."""

    served: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """With a hint, by code."""
    cancelled: int = 0
    expired: int = 0
    other_errors: Counter[str] = field(default_factory=Counter)
    """By code."""
    latencies_s: list[float] = field(default_factory=list)
    """Of the served."""

    @property
    def num_ended(self) -> int:
        """Requests."""
        errors = self.refused.total() + self.other_errors.total()
        return self.served + errors + self.cancelled + self.expired


class Clients:
    """One connection for each manner, and the requests that they have at work."""

    def __init__(self, clients: Sequence[Client], manners: Sequence[Manner], seed: int) -> None:
        self._clients = {m.name: c for m, c in zip(manners, clients, strict=True)}
        self._manners = manners
        self._chance = random.Random(seed)
        self._prompts = [text for texts in zoo.prompts().values() for text in texts]
        self.num_at_work = 0
        self._tally = SoakCounts()

    def draw(self) -> Manner:
        """Whose request comes next."""
        return self._chance.choices(self._manners, [m.weight for m in self._manners])[0]

    def take(self) -> SoakCounts:
        """What has ended since the last call."""
        tally, self._tally = self._tally, SoakCounts()
        return tally

    async def ask(self, manner: Manner) -> None:
        """One request, from its sending to its end."""
        tokens = self._chance.randint(manner.max_tokens // 4, manner.max_tokens)
        request = Request(
            client_id="",
            request_id=secrets.token_hex(8),
            kind="completion",
            prompt=self._chance.choice(self._prompts),
            max_tokens=tokens,
            sampling=Sampling(seed=self._chance.getrandbits(32)),
            ignore_eos=True,
            stream=manner.stream,
            n=manner.n,
            priority=manner.priority,
        )
        if manner.deadline_s is not None:
            request = replace(request, deadline_s=manner.deadline_s)
        patience_s = self._patience_s(manner)
        started = time.perf_counter()
        self.num_at_work += 1
        try:
            final = await read_answer(
                self._clients[manner.name], request, lambda _: patience_s != 0.0,
                cancel_after_s=patience_s or None,
            )  # fmt: skip
        except RequestError as error:
            self._note(error)
        else:
            if final is None:
                self._tally.cancelled += 1
            else:
                self._tally.served += 1
                self._tally.latencies_s.append(time.perf_counter() - started)
        finally:
            self.num_at_work -= 1

    def _patience_s(self, manner: Manner) -> float | None:
        """Until it cancels: 0 stands for the first text, None for never."""
        if self._chance.random() >= manner.cancelled_share:
            return None
        return self._chance.choice((0.0, self._chance.uniform(0.05, 3.0)))

    def _note(self, error: RequestError) -> None:
        if error.retry_after_s is not None:
            self._tally.refused[error.code] += 1
        elif error.code == _EXPIRED:
            self._tally.expired += 1
        else:
            self._tally.other_errors[error.code] += 1
