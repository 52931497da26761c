"""A whole cluster on this machine: broker, target and drafters, each a process of its own.

Children that die are started again with growing pauses. Used by `edgecosine up`, the demo and the
lab, which starts each node on a host of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from edgecosine.config import Exactness
from edgecosine.discovery.backoff import Backoff
from edgecosine.errors import EngineError
from edgecosine.node import processes
from edgecosine.node.broker import EmbeddedBroker
from edgecosine.node.client import Client

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 180.0
_QUICK_DEATH_S = 5.0
_LAST_LINES = 3
_DRAIN_TIMEOUT_S = 5.0
"""Less than the patience with which a process is stopped."""

Environment = Mapping[str, str]
Launch = Callable[[str, Sequence[str], Path, Environment], Awaitable[asyncio.subprocess.Process]]
"""Starts a node: its id, its command, the file that takes its output, and what it may know beside
our own environment."""


async def launch_here(
    _: str, command: Sequence[str], log: Path, env: Environment
) -> asyncio.subprocess.Process:
    """Start a node as a child of this process."""
    return await processes.spawn(command, log, env=env)


@dataclass(frozen=True, slots=True)
class Member:
    """One node to run: its id and the options of `edgecosine node`, stronger than the cluster's."""

    node_id: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """What to run. Without a broker URL the embedded broker is started."""

    cluster: str
    target: Member
    drafters: tuple[Member, ...]
    broker: str | None = None
    broker_port: int = 1883


class LocalCluster:
    """`async with LocalCluster(plan, say) as cluster`: entered when all nodes are linked.

    Raises EngineError with a node's last words when one ends while starting, and what the broker
    raises. `say` is told what is being done.
    """

    def __init__(
        self, plan: ClusterPlan, say: Callable[[str], None], launch: Launch = launch_here
    ) -> None:
        self._plan, self._say, self._launch = plan, say, launch
        self._directory = tempfile.TemporaryDirectory(prefix="edgecosine-")
        self._broker: EmbeddedBroker | None = None
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._stopped: set[str] = set()
        self._is_ready = False
        self._started = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self.broker_url = plan.broker or ""

    def __repr__(self) -> str:
        alive = sum(p.returncode is None for p in self._processes.values())
        return f"<LocalCluster {self._plan.cluster} [{alive} processes]>"

    @property
    def logs(self) -> Path:
        """Where each node's output goes; gone with the cluster."""
        return Path(self._directory.name)

    def pid(self, node_id: str) -> int:
        """Process id of a node."""
        return self._processes[node_id].pid

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of all nodes, and of the broker that was started for them."""
        found = {node_id: process.pid for node_id, process in self._processes.items()}
        return found if self._broker is None else {**found, "broker": self._broker.pid}

    def signal(self, node_id: str, number: signal.Signals) -> bool:
        """Send a node a signal; False when it is not running at this moment."""
        process = self._processes[node_id]
        if process.returncode is not None:
            return False
        try:
            process.send_signal(number)
        except ProcessLookupError:
            return False
        return True

    async def restarted(self, node_id: str, former_pid: int) -> None:
        """Wait until the node runs as another process than `former_pid`."""
        while self._processes[node_id].pid == former_pid:
            await self._started.wait()

    async def __aenter__(self) -> Self:
        try:
            await self._start_broker()
            await self._group.__aenter__()
            for member in (self._plan.target, *self._plan.drafters):
                await self._start(member)
                self._group.create_task(self._keep(member), name=f"keep {member.node_id}")
            await self._wait_until_linked()
        except BaseException:
            await self._stop_all()
            raise
        self._is_ready = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop_all()

    async def stop(self, node_id: str) -> None:
        """Stop one node for good."""
        self._stopped.add(node_id)
        await processes.stop(self._processes[node_id])

    async def drafters(self) -> int:
        """How many drafters the target is linked with now."""
        async with Client(self.broker_url, self._plan.cluster) as client:
            return await self._num_linked(client)

    async def wait_until_linked(self, count: int) -> None:
        """Wait until the target is linked with exactly `count` drafters."""
        async with Client(self.broker_url, self._plan.cluster) as client:
            while await self._num_linked(client) != count:
                await client.changed()

    async def _start_broker(self) -> None:
        if self._plan.broker is not None:
            return
        self._broker = EmbeddedBroker(port=self._plan.broker_port)
        await self._broker.__aenter__()
        self.broker_url = self._broker.url
        self._say(f"broker: {self._broker.kind} at {self._broker.url}")

    async def _start(self, member: Member) -> None:
        command = (
            sys.executable, "-m", "edgecosine", "node", "--node-id", member.node_id,
            "--cluster", self._plan.cluster, "--credentials", "none",
            "--drain-timeout", str(_DRAIN_TIMEOUT_S),
            "--state-dir", str(self.logs / f"{member.node_id}.state"), *member.options,
        )  # fmt: skip
        log = self.logs / f"{member.node_id}.log"
        env = {"EDGECOSINE_BROKER": self.broker_url}
        self._processes[member.node_id] = await self._launch(member.node_id, command, log, env)
        self._started.set()
        self._started = asyncio.Event()

    async def _keep(self, member: Member) -> None:
        """Restart a node that ended; while the cluster is starting, its end is the cluster's."""
        pauses, attempts = Backoff(), 0
        clock = asyncio.get_running_loop().time
        while True:
            started = clock()
            code = await self._processes[member.node_id].wait()
            if member.node_id in self._stopped:
                return
            if not self._is_ready:
                raise EngineError(f"{member.node_id} ended with {code}: {self._last_words(member)}")
            attempts = attempts + 1 if clock() - started < _QUICK_DEATH_S else 1
            pause_s = pauses.delay_s(attempts)
            self._say(f"{member.node_id} ended with {code}; starting it again in {pause_s:.1f} s")
            await asyncio.sleep(pause_s)
            if member.node_id in self._stopped:
                return  # the cluster ended during the pause
            await self._start(member)
            if member.node_id in self._stopped:
                await processes.stop(self._processes[member.node_id])

    def _last_words(self, member: Member) -> str:
        log = self.logs / f"{member.node_id}.log"
        lines = log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-_LAST_LINES:]) or "it left no message"

    async def _wait_until_linked(self) -> None:
        wanted = len(self._plan.drafters)
        self._say(f"starting 1 target and {wanted} drafters")
        try:
            async with (
                asyncio.timeout(START_TIMEOUT_S),
                Client(self.broker_url, self._plan.cluster) as client,
            ):
                linked = -1
                while linked < wanted:
                    if (now := await self._num_linked(client)) != linked:
                        linked = now
                        self._say(f"linked: {max(linked, 0)} of {wanted} drafters")
                    if linked < wanted:
                        await client.changed()
        except TimeoutError:
            raise EngineError(
                f"the nodes did not find each other within {START_TIMEOUT_S:.0f} s: run "
                f"`edgecosine doctor`; logs were in {self.logs}"
            ) from None

    async def _num_linked(self, client: Client) -> int:
        views = await client.nodes()
        target = views.get(self._plan.target.node_id)
        if target is None or not target.is_here or not await client.is_online():
            return -1
        linked = target.state.get("drafters", {})
        return sum(member.node_id in linked for member in self._plan.drafters)

    async def _stop_all(self) -> None:
        self._stopped.update(self._processes)
        async with asyncio.TaskGroup() as stopping:
            for process in self._processes.values():
                stopping.create_task(processes.stop(process))
        if self._processes:
            try:
                await self._group.__aexit__(None, None, None)
            except BaseExceptionGroup as group:
                logger.debug("a node had failed: %s", group.exceptions[0])
        if self._broker is not None:
            await self._broker.__aexit__(None, None, None)
        self._directory.cleanup()


def local_plan(
    target: str,
    drafters: Sequence[str],
    *,
    cluster: str,
    ballast: int,
    target_cores: str,
    drafter_cores: str,
    broker: str | None,
    broker_port: int,
    exactness: Exactness = "auto",
    target_device: str = "auto",
    drafter_devices: Sequence[str] = ("auto",),
) -> ClusterPlan:
    """A plan with one node per model; core lists as for `edgecosine node --cores`, devices as for
    `--device`: drafters take theirs in turns."""
    tail = secrets.token_hex(2)
    options = (
        "--model", target, "--role", "target", "--ballast", str(ballast), "--exactness", exactness,
        "--device", target_device,
    )  # fmt: skip
    return ClusterPlan(
        cluster=cluster,
        target=Member(f"target-{tail}", (*options, "--cores", target_cores)),
        drafters=tuple(
            Member(
                f"{node_name(model)}-{tail}",
                (*_drafter_options(model, drafter_cores), "--device", device),
            )
            for model, device in zip(drafters, itertools.cycle(drafter_devices), strict=False)
        ),
        broker=broker,
        broker_port=broker_port,
    )


def _drafter_options(model: str, cores: str) -> tuple[str, ...]:
    return ("--model", model, "--role", "drafter", "--cores", cores)


def node_name(model: str) -> str:
    """A model's name as part of a node id."""
    name = Path(os.path.normpath(Path(model).absolute())).name
    return "".join(c if c.isalnum() else "-" for c in name)[:40]
