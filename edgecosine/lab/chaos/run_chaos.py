"""One chaos run: fault-free texts, requests under faults, all requests once more, checks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from edgecosine.client.client import Client
from edgecosine.errors import BrokerLost, LabError, RequestError, ungrouped
from edgecosine.lab.chaos.checker import CheckResult, RequestHistory, check
from edgecosine.lab.chaos.clients import PATIENCE_S, ChaosClients
from edgecosine.lab.chaos.cluster import ChaosCluster, ChaosClusterSettings, chaos_cluster
from edgecosine.lab.chaos.fault_injector import FaultInjector
from edgecosine.lab.chaos.faults import Injected, Kind
from edgecosine.lab.chaos.observer import Observer
from edgecosine.lab.chaos.progress import Progress
from edgecosine.lab.chaos.schedule import make_schedule
from edgecosine.lab.chaos.workload import FAULT_FREE, WorkloadItem, make_bodies, make_workload
from edgecosine.lab.cluster import NetworkKind
from edgecosine.lab.figures import Figure, Notify, counted
from edgecosine.lab.load_generator import prompts_in_turn, read_answer, run_workers
from edgecosine.lab.network.hosts import Spawn
from edgecosine.local import child_processes
from edgecosine.protocol.api.request import Request

REQUESTS_PER_FAULT: Final = 5
DRAFTERS: Final = ("python", "home", "ngram")
MEMBERS: Final = ("legal", "legal", "python")
"""Members of a run with a committee: one on two nodes, and one on a single node."""
_MAX_BODIES: Final = 64
_NUM_CLIENTS: Final = 2
_HUNG_S: Final = 120.0
"""Limit after the last fault; no request takes this long unless it hangs."""
_REPEAT_S: Final = 60.0
_MAX_REPEATED: Final = 800
"""Below the number of answers that a gateway keeps."""
_LINKED_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class ChaosSettings:
    """Requests and faults of a run; core lists have the form of `edgecosine node --cores`."""

    requests: int = 300
    seed: int = 0
    faults: int | None = None
    """Number of faults; None: one for every five requests, and each kind at least once."""
    kinds: tuple[Kind, ...] = ()
    """The kinds of faults to inject; empty: all that are possible here."""
    at_work: int = 6
    """Requests that run at the same time."""
    max_tokens: int = 64
    ballast: int = 8
    drafters: tuple[str, ...] = DRAFTERS
    members: tuple[str, ...] = ()
    """Models of a committee's members, as in `LabPlan`; empty: the target answers alone."""
    network: NetworkKind = "auto"
    target_cores: str = ""
    drafter_cores: str = ""


@dataclass(frozen=True, slots=True)
class ChaosRun:
    """The result of a run."""

    result: CheckResult
    injected: tuple[Injected, ...]
    left_out: Mapping[Kind, str]
    network: str
    wall_s: float
    """Seconds from the first request to the end of the last."""
    nodes_back: int
    """Drafters and members that were linked again at the end."""

    @property
    def figures(self) -> dict[str, Figure]:
        """Counts by name."""
        result, kinds = self.result, Counter(each.fault.kind for each in self.injected)
        counts: dict[str, tuple[float, str]] = {
            "requests": (result.requests, "requests"),
            **{name: (len(names), "requests") for name, names in result.faulty.items()},
            "faults_injected": (len(self.injected), "faults"),
            **{f"faults_injected_{kind}": (n, "faults") for kind, n in sorted(kinds.items())},
            "repeated_finals": (result.repeated_finals, "messages"),
            "refusals": (result.refusals, "messages"),
            "cancelled": (result.cancelled, "requests"),
            "stream_parts": (result.stream_parts, "messages"),
            "stream_gaps": (result.stream_gaps, "messages"),
            "nodes_back": (self.nodes_back, "nodes"),
            "chaos_wall_s": (self.wall_s, "s"),
        }
        return {name: counted(value, unit) for name, (value, unit) in counts.items()}

    @property
    def records(self) -> list[dict[str, Any]]:
        """Every injected fault, and every request with a fault."""
        faults = [
            {**asdict(each.fault), "begun_s": each.begun_s, "ended_s": each.ended_s}
            for each in self.injected
        ]
        wrong = [
            {"request": name, "verdict": kind, "seen": reason}
            for kind, names in self.result.faulty.items()
            for name, reason in names.items()
        ]
        return [*faults, *wrong]


async def run_chaos(
    settings: ChaosSettings, notify: Notify, spawn: Spawn = child_processes.spawn
) -> ChaosRun:
    """Start a cluster, inject faults under load, and check the answers.

    Raises LabError, EngineError and BrokerLost when the cluster cannot be started.
    """
    cluster_settings = ChaosClusterSettings(
        settings.drafters, settings.members, settings.ballast, settings.network, settings.seed,
        settings.target_cores, settings.drafter_cores,
    )  # fmt: skip
    async with chaos_cluster(cluster_settings, notify, spawn) as cluster:
        for kind, reason in cluster.left_out.items():
            notify(f"left out: {kind.replace('_', ' ')}: {reason}")
        try:
            return await _Run(settings, cluster, notify).run()
        except asyncio.CancelledError:
            notify("interrupted: reverting all faults and stopping all processes")
            raise


class _Run:
    def __init__(self, settings: ChaosSettings, cluster: ChaosCluster, notify: Notify) -> None:
        self._settings, self._cluster, self._notify = settings, cluster, notify
        self._histories: dict[str, RequestHistory] = {}
        self._begun = time.monotonic()
        self._progress = Progress(settings.requests, self._now)
        self._injector = FaultInjector(cluster, self._progress, notify)

    def _now(self) -> float:
        return time.monotonic() - self._begun

    async def run(self) -> ChaosRun:
        settings = self._settings
        bodies = make_bodies(
            settings.seed, min(settings.requests, _MAX_BODIES), prompts_in_turn(),
            settings.max_tokens,
        )  # fmt: skip
        workload = make_workload(settings.seed, settings.requests, bodies)
        self._notify(f"recording fault-free texts of {len(bodies)} request bodies")
        expected = await self._fault_free(bodies)
        self._begun = time.monotonic()
        async with self._clients(expected) as (observer, clients, workload_clients):
            await self._ask_under_faults(workload, workload_clients)
            wall_s = self._now()
            await self._request_all_again(workload, clients, observer)
            connections = observer.connections
        nodes_back = await self._nodes_back()
        return ChaosRun(
            check(self._histories, connections, wall_s),
            tuple(self._injector.injected),
            self._cluster.left_out,
            type(self._cluster.lab.network).__name__,
            wall_s,
            nodes_back,
        )

    async def _fault_free(self, bodies: Sequence[Request]) -> list[tuple[str, ...]]:
        texts: dict[int, tuple[str, ...]] = {}
        client = self._cluster.lab.client

        async def work(job: tuple[int, Request], _: int) -> None:
            number, body = job
            request = replace(body, request_id=f"free-{number:05d}", policy=FAULT_FREE)
            if final := await read_answer(client, request, lambda _: True):
                texts[number] = final.texts

        try:
            with ungrouped(RequestError):
                await run_workers(enumerate(bodies), self._settings.at_work, work)
        except RequestError as error:
            raise LabError(f"a request failed without faults: {error}") from None
        return [texts[number] for number in range(len(bodies))]

    @contextlib.asynccontextmanager
    async def _clients(
        self, expected: Sequence[tuple[str, ...]]
    ) -> AsyncIterator[tuple[Observer, list[Client], ChaosClients]]:
        cluster = self._cluster.lab
        async with contextlib.AsyncExitStack() as stack:
            observer = Observer(cluster.broker_url, cluster.name, self._histories, self._now)
            await stack.enter_async_context(observer.listening())
            clients = [
                await stack.enter_async_context(
                    Client(
                        cluster.broker_url, cluster.name,
                        client_id=f"client-{number}", patience_s=PATIENCE_S,
                    )
                )
                for number in range(_NUM_CLIENTS)
            ]  # fmt: skip
            yield (
                observer,
                clients,
                ChaosClients(clients, observer, self._histories, expected, self._progress),
            )

    async def _ask_under_faults(
        self, workload: Sequence[WorkloadItem], workload_clients: ChaosClients
    ) -> None:
        settings, possible = self._settings, self._cluster.kinds
        kinds = tuple(kind for kind in possible if kind in (settings.kinds or possible))
        if settings.kinds and not kinds:
            reasons = {self._cluster.left_out[kind] for kind in settings.kinds}
            raise LabError(f"none of these faults is possible: {'; '.join(sorted(reasons))}")
        schedule = make_schedule(
            settings.seed,
            requests=settings.requests,
            faults=_num_faults(settings, kinds),
            kinds=kinds,
            drafters=self._cluster.lab.drafters,
            members=self._cluster.lab.members,
        )
        self._notify(f"{len(workload)} requests under {len(schedule)} faults of {len(kinds)} kinds")
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(
                run_workers(workload, settings.at_work, workload_clients.run)
            )
            await self._injector.run(schedule)
            self._notify(f"{self._progress}: all faults are reverted")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HUNG_S):
                    await asyncio.shield(sending)
            sending.cancel()

    async def _request_all_again(
        self, workload: Sequence[WorkloadItem], clients: Sequence[Client], observer: Observer
    ) -> None:
        """Send every request once more. Gateways keep its answer, so it must be the same."""
        repeated: list[str] = []
        since_s = self._now()
        for item in workload[-_MAX_REPEATED:]:
            for client in clients:
                name = f"{client.client_id}/{item.request.request_id}"
                if name in self._histories and self._histories[name].is_over:
                    observer.ask_again(item.request, client.client_id)
                    repeated.append(name)
        self._notify(f"sending {len(repeated)} requests again")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REPEAT_S):
                await observer.finals(repeated, since_s)

    async def _nodes_back(self) -> int:
        lab = self._cluster.lab
        local, count = lab.local, len(lab.drafters) + len(lab.members)
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
