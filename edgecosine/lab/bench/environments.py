"""The environments of the benchmark's sites: clusters, adversarial drafters, transformers."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from edgecosine import zoo
from edgecosine.lab.bench.cells import (
    COLOCATED,
    GENERALIST,
    LAN,
    STOCK,
    WITH_COPIES,
    Cell,
    Site,
)
from edgecosine.lab.bench.runner import BenchSettings, LabEnvironment
from edgecosine.lab.bench.schedule import Environment, OpenEnvironment
from edgecosine.lab.bench.transformers_process import stock_process
from edgecosine.lab.cluster import LabPlan, NetworkKind, lab_cluster
from edgecosine.lab.figures import Notify
from edgecosine.lab.network.netns import namespaces

NUM_ADVERSARIES = 3
MAX_SESSIONS = 16


def possible(cells: Sequence[Cell], kind: NetworkKind, notify: Notify) -> tuple[Cell, ...]:
    """The cells whose conditions this kind of network can emulate; reports the others."""
    if kind == "namespaces" or (kind == "auto" and namespaces.why_not() is None):
        return tuple(cells)
    for cell in cells:
        if cell.conditions.loss:
            notify(f"left out: {cell.name} needs network namespaces, that is, root")
    return tuple(cell for cell in cells if not cell.conditions.loss)


def environments(settings: BenchSettings, notify: Notify) -> OpenEnvironment:
    """A function that opens environments with these settings."""

    @asynccontextmanager
    async def open_environment(site: Site, cells: Sequence[Cell]) -> AsyncIterator[Environment]:
        policies = {policy for cell in cells for policy in cell.policies}
        async with AsyncExitStack() as stack:
            plan = await _plan(settings, site, stack)
            clusters = {"": await stack.enter_async_context(lab_cluster(plan, notify))}
            for policy in policies & set(WITH_COPIES):
                copies = (GENERALIST,) * len(plan.drafters)
                clusters[policy] = await stack.enter_async_context(
                    lab_cluster(replace(plan, drafters=copies), notify)
                )
            if COLOCATED in policies:
                beside = _colocated(settings)
                clusters[COLOCATED] = await stack.enter_async_context(lab_cluster(beside, notify))
            stock = None
            if policies & set(STOCK):
                notify("finding the quickest settings of transformers")
                process = stock_process(settings.ballast, settings.target_cores)
                stock = await stack.enter_async_context(process)
            environment = LabEnvironment(settings, site, clusters, stock)
            notify("warming up")
            await environment.warm_up(sorted(policies - set(STOCK)))
            yield environment

    return open_environment


async def _plan(settings: BenchSettings, site: Site, stack: AsyncExitStack) -> LabPlan:
    drafters = settings.drafters or zoo.drafter_names()
    if site == "hostile":
        from edgecosine.lab.adversarial_drafter import (
            write_adversarial_drafter,  # imports torch, which takes seconds
        )

        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgecosine-"))
        drafters = (
            str(await asyncio.to_thread(write_adversarial_drafter, Path(directory))),
        ) * NUM_ADVERSARIES
    return _lab_plan(settings, drafters, on_one_host=site == "loopback")


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
