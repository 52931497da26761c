"""Asks a running cluster and measures what the asker sees."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from edgecosine.client.client import Client
from edgecosine.protocol.api.answers import FinalMessage
from edgecosine.protocol.api.request import ChatMessage, Delta, Request, Sampling

GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer as its asker saw it."""

    domain: str
    policy: str
    text: str
    num_tokens: int
    elapsed_s: float
    """From sending the request to its final message."""
    first_text_s: float | None
    """From sending the request to its first text; None when the answer was not streamed."""
    queue_s: float
    prefill_s: float
    acceptance_histogram: tuple[int, ...]
    drafters: dict[str, dict[str, int]]
    plan: str
    rounds: tuple[dict[str, Any], ...] = ()
    """The course of each round, if it was recorded: `RoundTimes` as plain data."""
    began_s: float = 0.0
    """From when their times count, by the target's performance counter."""
    num_speculative_rounds: int = 0
    num_ahead_rounds: int = 0
    """As in `Metrics`."""

    @property
    def inter_token_s(self) -> float | None:
        """Mean time between tokens after the first text; None when that cannot be told."""
        if self.first_text_s is None or self.num_tokens < 2:
            return None
        return (self.elapsed_s - self.first_text_s) / (self.num_tokens - 1)

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens by the asker's clock."""
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
        """As plain data."""
        return {**asdict(self), "tokens_per_s": self.tokens_per_s}


def asked_elsewhere(
    domain: str, policy: str, text: str, *, num_tokens: int, elapsed_s: float, first_text_s: float
) -> Asked:
    """An answer by something else than the runtime, which has neither rounds nor drafters."""
    return Asked(
        domain=domain,
        policy=policy,
        text=text,
        num_tokens=num_tokens,
        elapsed_s=elapsed_s,
        first_text_s=first_text_s,
        queue_s=0.0,
        prefill_s=first_text_s,
        acceptance_histogram=(0,),
        drafters={},
        plan="",
    )


async def ask(
    client: Client,
    prompt: str,
    *,
    domain: str,
    policy: str,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    on_text: Callable[[str], None] | None = None,
    trace: bool = False,
    is_chat: bool = False,
) -> Asked:
    """Ask for exactly `max_tokens` tokens and wait for the whole answer, `trace`: with its rounds.

    `is_chat`: the prompt is a user's turn, and the model may end its answer before.

    Raises RequestError and BrokerLost.
    """
    request = Request(
        client_id="",
        request_id=secrets.token_hex(8),
        kind="chat" if is_chat else "completion",
        prompt=(ChatMessage("user", prompt),) if is_chat else prompt,
        max_tokens=max_tokens,
        sampling=sampling,
        ignore_eos=not is_chat,
        stream=on_text is not None,
        policy=policy,
        trace=trace,
    )
    started = time.perf_counter()
    first_text_s: float | None = None
    final: FinalMessage | None = None
    async with contextlib.aclosing(client.ask(request)) as steps:
        async for step in steps:
            if isinstance(step, Delta):
                if first_text_s is None:
                    first_text_s = time.perf_counter() - started
                if on_text is not None:
                    on_text(step.text)
            else:
                final = step
    elapsed_s = time.perf_counter() - started
    assert final is not None, "the client yields a final message or raises"
    own, figures = final.body["edgecosine"], final.body["metrics"]["speculative_decoding"]
    return Asked(
        domain=domain,
        policy=policy,
        text=final.text,
        num_tokens=final.body["usage"]["completion_tokens"],
        elapsed_s=elapsed_s,
        first_text_s=first_text_s,
        queue_s=own["queue_s"],
        prefill_s=own["prefill_s"],
        acceptance_histogram=tuple(figures["acceptance_histogram"]),
        drafters=own["drafters"],
        plan=own["plan"],
        num_speculative_rounds=own["speculative_rounds"],
        num_ahead_rounds=own["ahead_rounds"],
        rounds=tuple(own.get("rounds", ())),
        began_s=own.get("began_s", 0.0),
    )
