"""One chaos run: fault-free texts, requests under faults, roll call, verdict."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from edgecosine.client.client import Client
from edgecosine.errors import BrokerLost, LabError, RequestError
from edgecosine.lab.chaos.checker import CheckResult, Story, judge
from edgecosine.lab.chaos.clients import PATIENCE_S, ChaosClients
from edgecosine.lab.chaos.cluster import ChaosCluster, ChaosClusterSettings, chaos_place
from edgecosine.lab.chaos.fault_injector import FaultInjector
from edgecosine.lab.chaos.faults import Injected, Kind
from edgecosine.lab.chaos.observer import Observer
from edgecosine.lab.chaos.progress import Progress
from edgecosine.lab.chaos.schedule import make_schedule
from edgecosine.lab.chaos.workload import FAULT_FREE, WorkloadItem, make_bodies, make_orders
from edgecosine.lab.cluster import NetworkKind
from edgecosine.lab.figures import Figure, Notify, counted
from edgecosine.lab.load_generator import prompts_in_turn, read_answer, run_workers
from edgecosine.protocol.api.request import Request

REQUESTS_PER_FAULT: Final = 5
DRAFTERS: Final = ("python", "home", "ngram")
_MAX_BODIES: Final = 64
_NUM_CLIENTS: Final = 2
_HUNG_S: Final = 120.0
"""After the last fault; nothing takes so long unless it hangs."""
_ROLL_CALL_S: Final = 60.0
_MAX_CALLED: Final = 800
"""Fewer than the answers that a gateway keeps."""
_LINKED_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class ChaosSettings:
    """What to ask, and under how many faults; core lists as for `edgecosine node`.

    at_work   requests at one time
    """

    requests: int = 300
    seed: int = 0
    faults: int | None = None
    """None: one for every five requests, and at least every kind once."""
    kinds: tuple[Kind, ...] = ()
    """These alone; empty: all that are possible here."""
    at_work: int = 6
    max_tokens: int = 64
    ballast: int = 8
    drafters: tuple[str, ...] = DRAFTERS
    network: NetworkKind = "auto"
    target_cores: str = ""
    drafter_cores: str = ""


@dataclass(frozen=True, slots=True)
class ChaosRun:
    """What happened, and what it means."""

    verdict: CheckResult
    injected: tuple[Injected, ...]
    left_out: Mapping[Kind, str]
    network: str
    wall_s: float
    """Of the requests, from the first to the last."""
    drafters_back: int
    """Drafters that were linked again at the end."""

    @property
    def figures(self) -> dict[str, Figure]:
        """By name; counts, whose intervals are themselves."""
        verdict, kinds = self.verdict, Counter(each.fault.kind for each in self.injected)
        counts: dict[str, tuple[float, str]] = {
            "requests": (verdict.requests, "requests"),
            **{name: (len(names), "requests") for name, names in verdict.faulty.items()},
            "faults_injected": (len(self.injected), "faults"),
            **{f"faults_injected_{kind}": (n, "faults") for kind, n in sorted(kinds.items())},
            "repeated_finals": (verdict.repeated_finals, "messages"),
            "refusals": (verdict.refusals, "messages"),
            "cancelled": (verdict.cancelled, "requests"),
            "stream_parts": (verdict.stream_parts, "messages"),
            "stream_gaps": (verdict.stream_gaps, "messages"),
            "drafters_back": (self.drafters_back, "drafters"),
            "chaos_wall_s": (self.wall_s, "s"),
        }
        return {name: counted(value, unit) for name, (value, unit) in counts.items()}

    @property
    def records(self) -> list[dict[str, Any]]:
        """Every fault that was injected, and every request with which something is wrong."""
        faults = [
            {**asdict(each.fault), "begun_s": each.begun_s, "ended_s": each.ended_s}
            for each in self.injected
        ]
        wrong = [
            {"request": name, "verdict": kind, "seen": reason}
            for kind, names in self.verdict.faulty.items()
            for name, reason in names.items()
        ]
        return [*faults, *wrong]


async def run_chaos(settings: ChaosSettings, notify: Notify) -> ChaosRun:
    """Make a cluster, break it under load, and judge.

    Raises LabError, EngineError and BrokerLost when the cluster cannot be made.
    """
    place_settings = ChaosClusterSettings(
        settings.drafters, settings.ballast, settings.network, settings.seed,
        settings.target_cores, settings.drafter_cores,
    )  # fmt: skip
    async with chaos_place(place_settings, notify) as place:
        for kind, reason in place.left_out.items():
            notify(f"left out: {kind.replace('_', ' ')}: {reason}")
        try:
            return await _Run(settings, place, notify).run()
        except asyncio.CancelledError:
            notify("ended early: what is broken is mended, and all processes end")
            raise


class _Run:
    def __init__(self, settings: ChaosSettings, place: ChaosCluster, notify: Notify) -> None:
        self._settings, self._place, self._notify = settings, place, notify
        self._stories: dict[str, Story] = {}
        self._begun = time.monotonic()
        self._progress = Progress(settings.requests, self._now)
        self._injector = FaultInjector(place, self._progress, notify)

    def _now(self) -> float:
        return time.monotonic() - self._begun

    async def run(self) -> ChaosRun:
        settings = self._settings
        bodies = make_bodies(
            settings.seed, min(settings.requests, _MAX_BODIES), prompts_in_turn(),
            settings.max_tokens,
        )  # fmt: skip
        orders = make_orders(settings.seed, settings.requests, bodies)
        self._notify(f"fault-free texts of {len(bodies)} bodies")
        expected = await self._fault_free(bodies)
        self._begun = time.monotonic()
        async with self._askers(expected) as (witness, clients, askers):
            await self._ask_under_faults(orders, askers)
            wall_s = self._now()
            await self._call_roll(orders, clients, witness)
            connections = witness.connections
        drafters_back = await self._drafters_back()
        return ChaosRun(
            judge(self._stories, connections, wall_s),
            tuple(self._injector.injected),
            self._place.left_out,
            type(self._place.cluster.network).__name__,
            wall_s,
            drafters_back,
        )

    async def _fault_free(self, bodies: Sequence[Request]) -> list[tuple[str, ...]]:
        texts: dict[int, tuple[str, ...]] = {}
        client = self._place.cluster.client

        async def work(job: tuple[int, Request], _: int) -> None:
            number, body = job
            request = replace(body, request_id=f"free-{number:05d}", policy=FAULT_FREE)
            if final := await read_answer(client, request, lambda _: True):
                texts[number] = final.texts

        try:
            await run_workers(enumerate(bodies), self._settings.at_work, work)
        except* RequestError as errors:
            raise LabError(f"no answer without any fault: {errors.exceptions[0]}") from None
        return [texts[number] for number in range(len(bodies))]

    @contextlib.asynccontextmanager
    async def _askers(
        self, expected: Sequence[tuple[str, ...]]
    ) -> AsyncIterator[tuple[Observer, list[Client], ChaosClients]]:
        cluster = self._place.cluster
        async with contextlib.AsyncExitStack() as stack:
            witness = Observer(cluster.broker_url, cluster.name, self._stories, self._now)
            await stack.enter_async_context(witness.listening())
            clients = [
                await stack.enter_async_context(
                    Client(
                        cluster.broker_url, cluster.name,
                        client_id=f"asker-{number}", patience_s=PATIENCE_S,
                    )
                )
                for number in range(_NUM_CLIENTS)
            ]  # fmt: skip
            yield (
                witness,
                clients,
                ChaosClients(clients, witness, self._stories, expected, self._progress),
            )

    async def _ask_under_faults(self, orders: Sequence[WorkloadItem], askers: ChaosClients) -> None:
        settings, place = self._settings, self._place
        kinds = tuple(kind for kind in place.kinds if kind in (settings.kinds or place.kinds))
        schedule = make_schedule(
            settings.seed,
            requests=settings.requests,
            faults=_num_faults(settings, kinds),
            kinds=kinds,
            drafters=place.cluster.drafters,
        )
        self._notify(f"{len(orders)} requests under {len(schedule)} faults of {len(kinds)} kinds")
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(run_workers(orders, settings.at_work, askers.run))
            await self._injector.run(schedule)
            self._notify(f"{self._progress}: everything is whole again")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HUNG_S):
                    await asyncio.shield(asking)
            asking.cancel()

    async def _call_roll(
        self, orders: Sequence[WorkloadItem], clients: Sequence[Client], witness: Observer
    ) -> None:
        """Ask for everything once more: what was answered is kept, and comes again as it was."""
        called: list[str] = []
        since_s = self._now()
        for order in orders[-_MAX_CALLED:]:
            for client in clients:
                name = f"{client.client_id}/{order.request.request_id}"
                if name in self._stories and self._stories[name].is_over:
                    witness.ask_again(order.request, client.client_id)
                    called.append(name)
        self._notify(f"roll call of {len(called)} requests")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ROLL_CALL_S):
                await witness.finals(called, since_s)

    async def _drafters_back(self) -> int:
        local, count = self._place.cluster.local, len(self._place.cluster.drafters)
        try:
            async with asyncio.timeout(_LINKED_S):
                await local.wait_until_linked(count)
        except (TimeoutError, BrokerLost):
            return max(0, await local.drafters())
        return count


def _num_faults(settings: ChaosSettings, kinds: Sequence[Kind]) -> int:
    if settings.faults is not None:
        return settings.faults
    return max(len(kinds), settings.requests // REQUESTS_PER_FAULT)
