"""Measures the delay that the kill of a drafter causes to the request that uses it.

Requests run one after the other and record their rounds; drafters are killed at random times and
replaced. A kill counts if drafts were requested from its drafter in the round of the kill or in the
one before, so that the request needed them. The request's next token comes with the verification
of the round of the kill.
"""

from __future__ import annotations

import asyncio
import random
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.config import LinkOptions, NodeConfig
from edgecosine.engine.options import LoadOptions
from edgecosine.lab.faults.forkserver import DrafterForkServer
from edgecosine.lab.figures import Notify
from edgecosine.lab.harness import running_cluster, target_alone, wait_for_drafters
from edgecosine.lab.load_generator import ask, prompts_in_turn
from edgecosine.lab.measured_requests import MeasuredAnswer
from edgecosine.lab.network.hosts import free_port
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.protocol.api.request import DEFAULT_POLICY

_MODEL = "generalist"
_MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Kill:
    """Times of one kill in seconds; `to_next_token_s` includes the target's forward pass."""

    to_next_token_s: float
    pass_s: float
    """Part of the next token's forward pass that came after the kill."""
    deadline_s: float
    """Deadline of the current plan."""

    @property
    def over_deadline(self) -> float:
        """The wait without the forward pass, as a multiple of the plan's deadline."""
        return (self.to_next_token_s - self.pass_s) / self.deadline_s


async def measure_kills(
    count: int, *, ballast: int, target_cores: str, drafter_cores: tuple[int, ...], notify: Notify
) -> list[Kill]:
    """Kill drafters until `count` of the kills affected a request; returns those.

    Raises EngineError and BrokerLost.
    """
    address = f"127.0.0.1:{free_port()}"
    options = ("--ballast", str(ballast), "--listen", address, "--cores", target_cores)
    plan = target_alone("kills", zoo.TARGET, *options)
    async with running_cluster(plan, notify) as cluster:
        drafter = NodeConfig(
            role="drafter", node_id="d", cluster=plan.cluster,
            engine=LoadOptions(_MODEL, threads=len(drafter_cores)),
            broker=BrokerAddress.parse(cluster.local.broker_url),
            links=LinkOptions(
                listen="127.0.0.1:0", peers=(address,), mdns=False,
            ),
            cores=drafter_cores,
        )  # fmt: skip
        with DrafterForkServer(cluster.local.logs) as drafters:
            return await _Killer(cluster.client, drafters, drafter).run(count, notify)


class _Killer:
    """Sends requests and kills drafters concurrently."""

    def __init__(self, client: Client, drafters: DrafterForkServer, drafter: NodeConfig) -> None:
        self._client, self._drafters, self._drafter = client, drafters, drafter
        self._rng = random.Random(0)
        self._num_started = 0
        self._killed: list[tuple[str, float]] = []
        """Node id and time (by `perf_counter`) of each kill since the last answer."""

    async def run(self, count: int, notify: Notify) -> list[Kill]:
        kills: list[Kill] = []
        prompts = prompts_in_turn()
        number = num_killed = 0
        self._start_drafter()
        async with asyncio.TaskGroup() as group:
            killing = group.create_task(self._kill_on(), name="killer")
            while len(kills) < count:
                measured = await ask(
                    self._client, prompts[number % len(prompts)], domain="",
                    policy=DEFAULT_POLICY, max_tokens=_MAX_TOKENS, trace=True,
                )  # fmt: skip
                killed, self._killed = self._killed, []
                num_killed += len(killed)
                kills += effective_kills(measured, killed)
                number += 1
                if number % 20 == 0:
                    notify(f"drafters: {num_killed} killed, {len(kills)} of {count} in use")
            killing.cancel()
        return kills

    async def _kill_on(self) -> None:
        while True:
            await wait_for_drafters(self._client, self._drafters.alive)
            # Gives the planner time to choose the drafter.
            await asyncio.sleep(self._rng.uniform(0.1, 0.6))
            victim = self._drafters.alive[0]
            self._killed.append((victim, time.perf_counter()))
            self._drafters.kill(victim)
            self._start_drafter()

    def _start_drafter(self) -> None:
        self._num_started += 1
        self._drafters.start(replace(self._drafter, node_id=f"d{self._num_started}"))


def effective_kills(measured: MeasuredAnswer, killed: Sequence[tuple[str, float]]) -> list[Kill]:
    """The kills that affected an answer: it had requested drafts from the drafter, in the round of
    the kill or in the one before."""
    rounds = measured.rounds
    ends = [each["verified_s"] for each in rounds]
    found = []
    for victim, at in killed:
        moment = at - measured.began_s
        index = bisect_right(ends, moment)
        if not 1 <= index < len(rounds) or not rounds[index]["deadline_s"]:
            continue
        now, before = rounds[index], rounds[index - 1]
        if not any(_was_requested(each, victim, moment) for each in (before, now)):
            continue
        left_s = now["verified_s"] - moment
        found.append(Kill(left_s, min(left_s, now["pass_s"]), now["deadline_s"]))
    return found


def _was_requested(trace: dict[str, Any], drafter: str, moment: float) -> bool:
    return any(
        draft["drafter"] == drafter and draft["asked_s"] <= moment for draft in trace["drafts"]
    )
