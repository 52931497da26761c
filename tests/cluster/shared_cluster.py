"""A cluster for several tests, each of which runs its own event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from edgecosine.local.cluster import LocalCluster
from edgecosine.local.cluster_plan import ClusterPlan
from tests.support.forked_nodes import forked_cluster
from tests.support.mqtt import run_patiently


@contextlib.contextmanager
def running_cluster(plan: ClusterPlan) -> Iterator[LocalCluster]:
    """A cluster whose nodes are linked; a thread runs it until the block ends."""
    is_up: Future[tuple[LocalCluster, Callable[[], object]]] = Future()

    async def live() -> None:
        loop, is_over = asyncio.get_running_loop(), asyncio.Event()
        async with forked_cluster(plan) as cluster:
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
