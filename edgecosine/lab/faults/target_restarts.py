"""Measures the time until a request continues after a kill of its target, and compares it with
restarts of a target without requests."""

from __future__ import annotations

import contextlib
import secrets
import signal
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.errors import LabError
from edgecosine.lab.figures import Notify
from edgecosine.lab.harness import (
    TARGET,
    RunningCluster,
    end_node,
    running_cluster,
    target_alone,
    wait_for_target,
)
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Delta

_PATIENCE_S = 300.0
_MAX_TOKENS = 256
_BEFORE_KILL = 40
"""Characters of an answer that have arrived when its target is killed."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Times of two restarts, in seconds from the start of the target's process."""

    plain_s: float
    """Until a target without requests is ready. It loads the model and all code."""
    resumed_s: float
    """Until the client receives the first new text of a resumed request."""

    @property
    def extra_s(self) -> float:
        """Seconds beyond a plain start."""
        return self.resumed_s - self.plain_s


async def measure_restarts(
    count: int, *, ballast: int, target_cores: str, notify: Notify
) -> list[Restart]:
    """Kill a target `count` times without and `count` times during a request, alternately.

    Raises EngineError, BrokerLost, LabError and RequestError.
    """
    options = ("--ballast", str(ballast), "--cores", target_cores)
    plan = target_alone("restarts", zoo.TARGET, *options)
    found: list[Restart] = []
    async with running_cluster(plan, notify, patience_s=_PATIENCE_S) as cluster:
        await wait_for_target(cluster.client)
        for number in range(count):
            cluster.local.signal(TARGET, signal.SIGKILL)
            await wait_for_target(cluster.client, is_online=False)
            await wait_for_target(cluster.client)
            plain_s = cluster.seconds_since_start(TARGET)
            found.append(Restart(plain_s, await _resumed_s(cluster)))
            notify(
                f"target: restart {number + 1} of {count}, load {plain_s:.2f} s, "
                f"first new text after {found[-1].resumed_s:.2f} s"
            )
    return found


async def _resumed_s(cluster: RunningCluster) -> float:
    """Kill the target during an answer; returns seconds from its restart to the first new text."""
    async with contextlib.aclosing(_lengths(cluster.client)) as lengths:
        async for length in lengths:
            if length >= _BEFORE_KILL:
                break
        await end_node(cluster.local, TARGET, signal.SIGKILL)
        async for more in lengths:
            if more > length:
                resumed_s = cluster.seconds_since_start(TARGET)
                break
        else:
            raise LabError("the answer had ended before its target was killed")
        async for _ in lengths:
            pass
    return resumed_s


async def _lengths(client: Client) -> AsyncGenerator[int, None]:
    """Yields the number of characters of an answer whenever more arrive."""
    prompt = next(iter(zoo.prompts().values()))[0]
    request = Request(
        "", secrets.token_hex(8), "completion", prompt, max_tokens=_MAX_TOKENS, ignore_eos=True,
        stream=True,
    )  # fmt: skip
    length = 0
    async with contextlib.aclosing(client.ask(request)) as steps:
        async for step in steps:
            if isinstance(step, Delta):
                length += len(step.text)
                yield length
