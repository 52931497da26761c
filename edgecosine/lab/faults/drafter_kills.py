"""What a drafter that is killed at work costs the request that it works for.

Requests run one after the other, each with the course of its rounds; drafters are killed at random
moments and replaced by others. A kill counts where its drafter was asked in the round of that
moment, or in the one before, so that its drafts were wanted. The request's next token comes with
the verdict of the round in which the kill falls.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.config import LinkOptions, NodeConfig
from edgecosine.engine.loading.options import LoadOptions
from edgecosine.lab.faults.forkserver import Nursery
from edgecosine.lab.measured_requests import Asked, ask
from edgecosine.lab.network.hosts import free_port
from edgecosine.local.cluster import LocalCluster
from edgecosine.local.cluster_plan import ClusterPlan, LocalNode
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.protocol.api.request import DEFAULT_POLICY

_TARGET = "target"
_MODEL = "generalist"
_NUM_DRAFTERS = 1
_MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Kill:
    """Seconds of one kill. A part of `to_next_token_s` is the pass, which any token needs."""

    to_next_token_s: float
    pass_s: float
    """Of the pass that made the token, what came after the kill."""
    deadline_s: float
    """Of the plan in force."""

    @property
    def over_deadline(self) -> float:
        """Wait beyond the pass over the deadline of the plan."""
        return (self.to_next_token_s - self.pass_s) / self.deadline_s


async def measure_kills(
    count: int, *, ballast: int, target_cores: str, drafter_cores: tuple[int, ...],
    say: Callable[[str], None],
) -> list[Kill]:  # fmt: skip
    """Kill until so many kills count.

    Raises EngineError and BrokerLost.
    """
    port = free_port()
    options = (
        "--role", "target", "--model", zoo.TARGET, "--ballast", str(ballast), "--no-mdns",
        "--listen", f"127.0.0.1:{port}", "--cores", target_cores,
    )  # fmt: skip
    plan = ClusterPlan(
        f"kills-{secrets.token_hex(3)}", LocalNode(_TARGET, options), (), broker_port=free_port()
    )
    async with (
        LocalCluster(plan, say) as cluster,
        Client(cluster.broker_url, plan.cluster) as client,
    ):
        drafter = NodeConfig(
            role="drafter", node_id="d", cluster=plan.cluster,
            engine=LoadOptions(_MODEL, threads=len(drafter_cores)),
            broker=BrokerAddress.parse(cluster.broker_url),
            links=LinkOptions(
                listen="127.0.0.1:0", peers=(f"127.0.0.1:{port}",), mdns=False,
            ),
            cores=drafter_cores,
        )  # fmt: skip
        with Nursery(cluster.logs) as nursery:
            return await _Killing(client, nursery, drafter).run(count, say)


class _Killing:
    """One asker and one killer, side by side."""

    def __init__(self, client: Client, nursery: Nursery, drafter: NodeConfig) -> None:
        self._client, self._nursery, self._drafter = client, nursery, drafter
        self._chance = random.Random(0)
        self._num_started = 0
        self._killed: list[tuple[str, float]] = []
        """Who, and when by the performance counter; not yet judged."""
        self._kills: list[Kill] = []

    async def run(self, count: int, say: Callable[[str], None]) -> list[Kill]:
        for _ in range(_NUM_DRAFTERS):
            self._replace()
        prompts = [text for texts in zip(*zoo.prompts().values(), strict=False) for text in texts]
        number = num_killed = 0
        async with asyncio.TaskGroup() as group:
            killing = group.create_task(self._kill_on(), name="killer")
            while len(self._kills) < count:
                asked = await ask(
                    self._client, prompts[number % len(prompts)], domain="",
                    policy=DEFAULT_POLICY, max_tokens=_MAX_TOKENS, trace=True,
                )  # fmt: skip
                killed, self._killed = self._killed, []
                num_killed += len(killed)
                self._kills += judged(asked, killed)
                number += 1
                if number % 20 == 0:
                    say(f"drafters: {num_killed} killed, {len(self._kills)} of {count} at work")
            killing.cancel()
        return self._kills

    async def _kill_on(self) -> None:
        while True:
            await self._linked()
            # Time to become one of the plan's.
            await asyncio.sleep(self._chance.uniform(0.1, 0.6))
            victim = self._nursery.alive[0]
            self._killed.append((victim, time.perf_counter()))
            self._nursery.kill(victim)
            self._replace()

    async def _linked(self) -> None:
        wanted = set(self._nursery.alive)
        while True:
            view = (await self._client.nodes()).get(_TARGET)
            if view is not None and wanted <= set(view.state.get("drafters", {})):
                return
            await self._client.changed()

    def _replace(self) -> None:
        self._num_started += 1
        self._nursery.start(replace(self._drafter, node_id=f"d{self._num_started}"))


def judged(asked: Asked, killed: Sequence[tuple[str, float]]) -> list[Kill]:
    """The kills during an answer of drafters that it was using."""
    rounds = asked.rounds
    ends = [each["verified_s"] for each in rounds]
    found = []
    for victim, at in killed:
        moment = at - asked.began_s
        place = bisect_right(ends, moment)
        if not 1 <= place < len(rounds) or not rounds[place]["deadline_s"]:
            continue
        now, before = rounds[place], rounds[place - 1]
        if not any(_was_asked(each, victim, moment) for each in (before, now)):
            continue
        left_s = now["verified_s"] - moment
        found.append(Kill(left_s, min(left_s, now["pass_s"]), now["deadline_s"]))
    return found


def _was_asked(played: dict[str, Any], drafter: str, moment: float) -> bool:
    return any(
        draft["drafter"] == drafter and draft["asked_s"] <= moment for draft in played["drafts"]
    )
