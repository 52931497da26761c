"""A cluster that several tests share, each with an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from edgecosine.local.cluster import LocalCluster
from edgecosine.local.cluster_plan import ClusterPlan
from tests.support.mqtt import run_patiently


@contextlib.contextmanager
def standing(plan: ClusterPlan) -> Iterator[LocalCluster]:
    """A cluster whose nodes are linked; it is kept by a thread and ends with the block."""
    is_up: Future[tuple[LocalCluster, Callable[[], object]]] = Future()

    async def live() -> None:
        loop, is_over = asyncio.get_running_loop(), asyncio.Event()
        async with LocalCluster(plan, print) as cluster:
            is_up.set_result((cluster, lambda: loop.call_soon_threadsafe(is_over.set)))
            await is_over.wait()

    with ThreadPoolExecutor(1) as pool:
        life = pool.submit(lambda: run_patiently(live()))
        wait((is_up, life), return_when=FIRST_COMPLETED)
        if not is_up.done():
            life.result()
        cluster, end = is_up.result()
        try:
            yield cluster
        finally:
            end()
            life.result()
