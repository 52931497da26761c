"""A cluster for several tests, each of which runs its own event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from edgecosine import zoo
from edgecosine.local.cluster import LocalCluster
from edgecosine.local.cluster_plan import ClusterPlan, local_plan
from tests.support.forked_nodes import forked_cluster
from tests.support.mqtt import free_port, run_patiently


@contextlib.contextmanager
def http_cluster(name: str, url: str) -> Iterator[LocalCluster]:
    """A target of the zoo that serves HTTP at `url`, and one drafter."""
    plan = local_plan(
        zoo.TARGET, zoo.drafter_names()[:1], cluster=name, ballast=1, target_cores="",
        drafter_cores="", broker=None, broker_port=free_port(), http=url,
    )  # fmt: skip
    with running_cluster(plan) as cluster:
        yield cluster


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
