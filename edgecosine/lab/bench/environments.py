"""The environments of the benchmark's sites: clusters, hostile drafters, transformers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from edgecosine import zoo
from edgecosine.lab.bench.cells import (
    COLOCATED,
    GENERALIST,
    LAN,
    STOCK,
    WITH_COPIES,
    Cell,
)
from edgecosine.lab.bench.runner import BenchSettings, LabEnvironment
from edgecosine.lab.bench.schedule import Environment, OpenEnvironment
from edgecosine.lab.bench.transformers_messages import TransformersReady
from edgecosine.lab.bench.transformers_process import stock_process
from edgecosine.lab.cluster import LabPlan, NetworkKind, lab_cluster
from edgecosine.lab.figures import Notify
from edgecosine.lab.network.hosts import Spawn
from edgecosine.lab.network.netns import namespaces
from edgecosine.local import child_processes

NUM_ADVERSARIES = 3
MAX_SESSIONS = 16


def possible(cells: Sequence[Cell], kind: NetworkKind, notify: Notify) -> tuple[Cell, ...]:
    """The cells whose conditions this kind of network can emulate; `notify` receives the others."""
    if kind == "namespaces" or (kind == "auto" and namespaces.why_not() is None):
        return tuple(cells)
    for cell in cells:
        if cell.conditions.loss:
            notify(f"left out: {cell.name} needs network namespaces, that is, root")
    return tuple(cell for cell in cells if not cell.conditions.loss)


def environments(
    settings: BenchSettings, notify: Notify, spawn: Spawn = child_processes.spawn
) -> OpenEnvironment:
    """A function that opens environments with these settings: fresh clusters for each repetition of
    a cell. The quickest settings of transformers are chosen once."""
    chosen: list[TransformersReady] = []

    @asynccontextmanager
    async def open_environment(cell: Cell) -> AsyncIterator[Environment]:
        async with AsyncExitStack() as stack:
            plan = _plan(settings, cell)
            clusters = {"": await stack.enter_async_context(lab_cluster(plan, notify, spawn=spawn))}
            for policy in set(cell.policies) & set(WITH_COPIES):
                copies = (GENERALIST,) * len(plan.drafters)
                clusters[policy] = await stack.enter_async_context(
                    lab_cluster(replace(plan, drafters=copies), notify, spawn=spawn)
                )
            if COLOCATED in cell.policies:
                beside = _colocated(settings)
                cluster = lab_cluster(beside, notify, spawn=spawn)
                clusters[COLOCATED] = await stack.enter_async_context(cluster)
            stock = None
            if set(cell.policies) & set(STOCK):
                process = stock_process(settings.ballast, settings.target_cores, *chosen)
                stock = await stack.enter_async_context(process)
                chosen[:] = [stock.ready]
            yield LabEnvironment(settings, clusters, stock)

    return open_environment


def _plan(settings: BenchSettings, cell: Cell) -> LabPlan:
    drafters = settings.drafters or zoo.drafter_names()
    if cell.harm is not None:
        drafters = (GENERALIST,) * NUM_ADVERSARIES
    plan = _lab_plan(settings, drafters, on_one_host=cell.site == "loopback")
    return replace(plan, conditions=cell.conditions, harm=cell.harm)


def _colocated(settings: BenchSettings) -> LabPlan:
    """One drafter for all domains, on the target's host and cores."""
    model = GENERALIST if not settings.drafters else settings.drafters[0]
    cores = ("--cores", settings.target_cores)
    return _lab_plan(settings, (model,), on_one_host=True, drafter_options=cores)


def _lab_plan(
    settings: BenchSettings, drafters: tuple[str, ...], *, on_one_host: bool,
    drafter_options: tuple[str, ...] = (),
) -> LabPlan:  # fmt: skip
    slots = ("--slots", str(MAX_SESSIONS))
    return LabPlan(
        drafters=drafters,
        ballast=settings.ballast,
        conditions=LAN,
        network=settings.network,
        target_cores=settings.target_cores,
        drafter_cores=settings.drafter_cores,
        target_options=(*slots, "--max-sessions", str(MAX_SESSIONS)),
        drafter_options=(*slots, *drafter_options),
        on_one_host=on_one_host,
    )
