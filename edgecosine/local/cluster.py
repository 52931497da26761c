"""A whole cluster on this machine: broker, target and drafters, each in a child process.

A process that ends is restarted with exponential back-off. Used by `edgecosine up`, the demo and
the lab, which starts each node in its own network namespace.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgecosine.backoff import Backoff
from edgecosine.client.client import Client
from edgecosine.errors import BrokerLost, ConfigError, EngineError
from edgecosine.local import child_processes as processes
from edgecosine.local.cluster_plan import ClusterPlan, LocalNode
from edgecosine.local.embedded_broker import EmbeddedBroker

START_TIMEOUT_S = 600.0
"""A large model on a slow disk is read for minutes."""
_EARLY_EXIT_S = 5.0
_DRAIN_TIMEOUT_S = 5.0
"""Shorter than the timeout after which a process is killed."""
_UNSET = dict.fromkeys(
    ("EDGECOSINE_CONFIG", "EDGECOSINE_LISTEN", "EDGECOSINE_PEER", "EDGECOSINE_INSECURE"), ""
)
"""Unset: in this process's environment they are settings of another node."""
_NO_BROKER_ACCESS = {
    f"EDGECOSINE_BROKER_{name}": ""
    for name in ("CA", "CERTIFICATE", "USERNAME", "PASSWORD", "PASSWORD_FILE")
}
"""Unset: in this process's environment they belong to another broker."""

Environment = Mapping[str, str]
Launch = Callable[[str, Sequence[str], Path, Environment], Awaitable[asyncio.subprocess.Process]]
"""Starts a node: takes its id, its command, its log file, and additions to the environment."""


async def launch_here(
    _: str, command: Sequence[str], log: Path, env: Environment
) -> asyncio.subprocess.Process:
    """Start a node as a child of this process."""
    return await processes.spawn(command, log, env=env)


class LocalCluster:
    """`async with LocalCluster(plan, notify) as cluster`: entered when all nodes are linked.

    `notify` receives progress messages. Raises EngineError with the end of a node's log when a node
    ends during the start, and ConfigError or BrokerLost when the broker does not start.
    """

    def __init__(
        self, plan: ClusterPlan, notify: Callable[[str], None], launch: Launch = launch_here
    ) -> None:
        self._plan, self._notify, self._launch = plan, notify, launch
        self._directory = tempfile.TemporaryDirectory(prefix="edgecosine-")
        self._broker: EmbeddedBroker | None = None
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._stopped: set[str] = set()
        self._is_ready = False
        self._started = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._num_cancelled = 0
        self._broker_keeper: asyncio.Task[None] | None = None
        self.broker_url = plan.broker or ""

    def __repr__(self) -> str:
        alive = sum(p.returncode is None for p in self._processes.values())
        return f"<LocalCluster {self._plan.cluster} [{alive} processes]>"

    @property
    def logs(self) -> Path:
        """Directory of the nodes' logs; removed with the cluster."""
        return Path(self._directory.name)

    def pid(self, node_id: str) -> int:
        """Process id of a node."""
        return self._processes[node_id].pid

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of all nodes and of the embedded broker, by name."""
        found = {node_id: process.pid for node_id, process in self._processes.items()}
        return found if self._broker is None else {**found, "broker": self._broker.pid}

    def signal(self, node_id: str, number: signal.Signals) -> bool:
        """Send a signal to a node; False if it is not running."""
        process = self._processes[node_id]
        if process.returncode is not None:
            return False
        try:
            process.send_signal(number)
        except ProcessLookupError:
            return False
        return True

    async def restarted(self, node_id: str, former_pid: int) -> None:
        """Wait until the node runs in another process than `former_pid`."""
        while self._processes[node_id].pid == former_pid:
            await self._started.wait()

    async def __aenter__(self) -> Self:
        self._num_cancelled = _current_task().cancelling()
        try:
            await self._start_all()
            await self._wait_until_linked()
        except BaseException as error:
            await self._stop_all(error)
            raise
        self._is_ready = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop_all(error)

    async def stop(self, node_id: str) -> None:
        """Stop one node permanently."""
        self._stopped.add(node_id)
        await processes.stop(self._processes[node_id])

    async def drafters(self) -> int:
        """Number of drafters and members that the target is linked with."""
        async with self._client() as client:
            return await self._num_linked(client)

    async def wait_until_linked(self, count: int) -> None:
        """Wait until the target is linked with exactly `count` drafters and members."""
        async with self._client() as client:
            while await self._num_linked(client) != count:
                await client.changed()

    def _client(self) -> Client:
        return Client(self._plan.access or self.broker_url, self._plan.cluster)

    async def _start_all(self) -> None:
        if self._plan.broker is None:
            self._broker = EmbeddedBroker(port=self._plan.broker_port)
            await self._broker.__aenter__()
            self.broker_url = self._broker.url
            self._notify(f"broker: {self._broker.kind} at {self._broker.url}")
        await self._group.__aenter__()
        if self._broker is not None:
            keeping = self._keep_broker(self._broker)
            self._broker_keeper = self._group.create_task(keeping, name="keep broker")
        for node in (self._plan.target, *self._plan.drafters):
            await self._start(node)
            self._group.create_task(self._keep(node), name=f"keep {node.node_id}")

    async def _start(self, node: LocalNode) -> None:
        command = (
            sys.executable, "-m", "edgecosine", "node", "--node-id", node.node_id,
            "--cluster", self._plan.cluster, "--credentials", "none",
            "--drain-timeout", str(_DRAIN_TIMEOUT_S),
            "--state-dir", str(self.logs / f"{node.node_id}.state"), *node.options,
        )  # fmt: skip
        log = self.logs / f"{node.node_id}.log"
        env = {"EDGECOSINE_BROKER": self.broker_url, **_UNSET}
        if self._plan.access is None:
            env |= _NO_BROKER_ACCESS
        self._processes[node.node_id] = await self._launch(node.node_id, command, log, env)
        self._started.set()
        self._started = asyncio.Event()

    async def _keep(self, node: LocalNode) -> None:
        """Restart a node whenever it ends; during the start of the cluster, fail instead."""
        delays = _RestartDelays()
        while True:
            started = _now_s()
            code = await self._processes[node.node_id].wait()
            if node.node_id in self._stopped:
                return
            if not self._is_ready:
                lines = processes.last_log_lines(self.logs / f"{node.node_id}.log")
                # The lines may name options that this process's command does not have.
                raise EngineError(
                    f"{node.node_id}, run by `edgecosine node`, {processes.ending(code)}: {lines}"
                )
            delay_s = delays.after(_now_s() - started)
            end = processes.ending(code)
            self._notify(f"{node.node_id} {end}; restarting it in {delay_s:.1f} s")
            await asyncio.sleep(delay_s)
            if node.node_id in self._stopped:
                return  # the cluster ended during the delay
            await self._start(node)
            if node.node_id in self._stopped:
                await processes.stop(self._processes[node.node_id])

    async def _keep_broker(self, broker: EmbeddedBroker) -> None:
        """Restart the broker at its port whenever it ends, until cancelled."""
        delays, work = _RestartDelays(), broker.wait
        while True:
            started = _now_s()
            try:
                await work()
                work = broker.wait
            except (BrokerLost, ConfigError) as reason:
                if not self._is_ready:
                    raise
                delay_s = delays.after(_now_s() - started)
                self._notify(f"{reason}; restarting it in {delay_s:.1f} s")
                await asyncio.sleep(delay_s)
                work = broker.restart

    async def _wait_until_linked(self) -> None:
        wanted = len(self._plan.drafters)
        self._notify(f"starting 1 target and {wanted} drafter{'s' * (wanted != 1)}")
        try:
            async with (
                asyncio.timeout(START_TIMEOUT_S),
                self._client() as client,
            ):
                linked = -1
                while linked < wanted:
                    if (now := await self._num_linked(client)) != linked:
                        linked = now
                        self._notify(f"linked: {max(linked, 0)} of {wanted} drafters")
                    if linked < wanted:
                        await client.changed()
        except TimeoutError:
            ends = ", ".join(
                f"{node.node_id}: {processes.last_log_lines(self.logs / f'{node.node_id}.log', 1)}"
                for node in (self._plan.target, *self._plan.drafters)
            )
            raise EngineError(
                f"the nodes did not link within {START_TIMEOUT_S:.0f} s: run "
                f"`edgecosine doctor`; their logs end with {ends}"
            ) from None

    async def _num_linked(self, client: Client) -> int:
        views = await client.nodes()
        target = views.get(self._plan.target.node_id)
        if target is None or not target.is_here or not await client.is_online():
            return -1
        members = target.state.get("members", {}).values()
        linked = {*target.state.get("drafters", {}), *(n for m in members for n in m["nodes"])}
        return sum(node.node_id in linked for node in self._plan.drafters)

    async def _stop_all(self, error: BaseException | None = None) -> None:
        """Stop all processes; `error` is the one that ends the cluster.

        Raises the failure of a node or of the broker if that is what cancelled the caller.
        """
        self._stopped.update(self._processes)
        async with asyncio.TaskGroup() as stopping:
            for process in self._processes.values():
                stopping.create_task(processes.stop(process))
        if self._broker_keeper is not None:
            self._broker_keeper.cancel()
        try:
            if self._processes:
                await self._group.__aexit__(type(error) if error else None, error, None)
        except BaseExceptionGroup as group:
            for reason in group.exceptions:
                if reason is not error:
                    self._forget_cancellation()
                    raise reason from None
        finally:
            if self._broker is not None:
                await self._broker.__aexit__(None, None, None)
            self._directory.cleanup()

    def _forget_cancellation(self) -> None:
        """Task groups of Python 3.11 leave a cancellation behind where one in them fails late; a
        later wait of the caller would end with it."""
        task = _current_task()
        while task.cancelling() > self._num_cancelled:
            task.uncancel()


class _RestartDelays:
    """Delays before restarts of a process that keeps ending."""

    def __init__(self) -> None:
        self._backoff, self._attempts = Backoff(), 0

    def after(self, life_s: float) -> float:
        """Seconds to wait before restarting a process that ran for `life_s`."""
        self._attempts = self._attempts + 1 if life_s < _EARLY_EXIT_S else 1
        return self._backoff.delay_s(self._attempts)


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _now_s() -> float:
    return asyncio.get_running_loop().time()
