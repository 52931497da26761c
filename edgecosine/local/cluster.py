"""A whole cluster on this machine: broker, target and drafters, each a process of its own.

Whatever dies is started again with growing pauses. Used by `edgecosine up`, the demo and the
lab, which starts each node on a host of its own.
"""

from __future__ import annotations

import asyncio
import itertools
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

from edgecosine.client.client import Client
from edgecosine.discovery.backoff import Backoff
from edgecosine.engine.loading.options import Exactness
from edgecosine.errors import BrokerLost, ConfigError, EngineError
from edgecosine.local import child_processes as processes
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt.broker_address import BrokerAddress

START_TIMEOUT_S = 180.0
_QUICK_DEATH_S = 5.0
_DRAIN_TIMEOUT_S = 5.0
"""Less than the patience with which a process is stopped."""
_OF_OTHERS = dict.fromkeys(
    ("EDGECOSINE_CONFIG", "EDGECOSINE_LISTEN", "EDGECOSINE_PEER", "EDGECOSINE_INSECURE"), ""
)
"""Said in our environment of a node that is none of these; empty is as good as not said."""
_TO_ANOTHER_BROKER = {
    f"EDGECOSINE_BROKER_{name}": ""
    for name in ("CA", "CERTIFICATE", "USERNAME", "PASSWORD", "PASSWORD_FILE")
}
"""What `ask` is told of the broker that it asks."""

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
class LocalNode:
    """One node to run: its id and the options of `edgecosine node`, stronger than the cluster's."""

    node_id: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """What to run. Without a broker URL the embedded broker is started."""

    cluster: str
    target: LocalNode
    drafters: tuple[LocalNode, ...]
    broker: str | None = None
    broker_port: int = 1883
    access: BrokerAddress | None = None
    """How to come to a broker that wants more than its URL; nodes read it of the environment."""


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
        self._broker_keeper: asyncio.Task[None] | None = None
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
        """Stop one node for good."""
        self._stopped.add(node_id)
        await processes.stop(self._processes[node_id])

    async def drafters(self) -> int:
        """How many drafters the target is linked with now."""
        async with self._client() as client:
            return await self._num_linked(client)

    async def wait_until_linked(self, count: int) -> None:
        """Wait until the target is linked with exactly `count` drafters."""
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
            self._say(f"broker: {self._broker.kind} at {self._broker.url}")
        await self._group.__aenter__()
        if self._broker is not None:
            keeping = self._keep_broker(self._broker)
            self._broker_keeper = self._group.create_task(keeping, name="keep broker")
        for member in (self._plan.target, *self._plan.drafters):
            await self._start(member)
            self._group.create_task(self._keep(member), name=f"keep {member.node_id}")

    async def _start(self, member: LocalNode) -> None:
        command = (
            sys.executable, "-m", "edgecosine", "node", "--node-id", member.node_id,
            "--cluster", self._plan.cluster, "--credentials", "none",
            "--drain-timeout", str(_DRAIN_TIMEOUT_S),
            "--state-dir", str(self.logs / f"{member.node_id}.state"), *member.options,
        )  # fmt: skip
        log = self.logs / f"{member.node_id}.log"
        env = {"EDGECOSINE_BROKER": self.broker_url, **_OF_OTHERS}
        if self._plan.access is None:
            env |= _TO_ANOTHER_BROKER
        self._processes[member.node_id] = await self._launch(member.node_id, command, log, env)
        self._started.set()
        self._started = asyncio.Event()

    async def _keep(self, member: LocalNode) -> None:
        """Restart a node that ended; while the cluster is starting, its end is the cluster's."""
        pauses = _Pauses()
        while True:
            started = _now_s()
            code = await self._processes[member.node_id].wait()
            if member.node_id in self._stopped:
                return
            if not self._is_ready:
                words = processes.last_words(self.logs / f"{member.node_id}.log")
                raise EngineError(f"{member.node_id} {processes.ending(code)}: {words}")
            pause_s = pauses.after(_now_s() - started)
            end = processes.ending(code)
            self._say(f"{member.node_id} {end}; starting it again in {pause_s:.1f} s")
            await asyncio.sleep(pause_s)
            if member.node_id in self._stopped:
                return  # the cluster ended during the pause
            await self._start(member)
            if member.node_id in self._stopped:
                await processes.stop(self._processes[member.node_id])

    async def _keep_broker(self, broker: EmbeddedBroker) -> None:
        """Restart the broker at its port when it ended, until cancelled; as nodes are."""
        pauses, work = _Pauses(), broker.wait
        while True:
            started = _now_s()
            try:
                await work()
                work = broker.wait
            except (BrokerLost, ConfigError) as reason:
                if not self._is_ready:
                    raise
                pause_s = pauses.after(_now_s() - started)
                self._say(f"{reason}; starting it again in {pause_s:.1f} s")
                await asyncio.sleep(pause_s)
                work = broker.restart

    async def _wait_until_linked(self) -> None:
        wanted = len(self._plan.drafters)
        self._say(f"starting 1 target and {wanted} drafters")
        try:
            async with (
                asyncio.timeout(START_TIMEOUT_S),
                self._client() as client,
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

    async def _stop_all(self, error: BaseException | None = None) -> None:
        """End everything, whatever `error` it is for.

        Raises what a node or the broker ended with, where that is what cancelled us.
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
                    raise reason from None
        finally:
            if self._broker is not None:
                await self._broker.__aexit__(None, None, None)
            self._directory.cleanup()


class _Pauses:
    """How long to wait before something is started again that ends again and again."""

    def __init__(self) -> None:
        self._backoff, self._attempts = Backoff(), 0

    def after(self, life_s: float) -> float:
        """Seconds to wait after a life of so many seconds."""
        self._attempts = self._attempts + 1 if life_s < _QUICK_DEATH_S else 1
        return self._backoff.delay_s(self._attempts)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


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
    access: BrokerAddress | None = None,
) -> ClusterPlan:
    """A plan with one node per model; core lists as for `edgecosine node --cores`, devices as for
    `--device`: drafters take theirs in turns."""
    tail = secrets.token_hex(2)
    options = (
        "--model", target, "--role", "target", "--ballast", str(ballast), "--exactness", exactness,
        "--device", target_device,
    )  # fmt: skip
    names = distinct(["target", *map(node_name, drafters)])
    return ClusterPlan(
        cluster=cluster,
        target=LocalNode(f"target-{tail}", (*options, "--cores", target_cores)),
        drafters=tuple(
            LocalNode(
                f"{name}-{tail}", (*_drafter_options(model, drafter_cores), "--device", device)
            )
            for name, model, device in zip(
                names[1:], drafters, itertools.cycle(drafter_devices), strict=False
            )
        ),
        broker=broker,
        broker_port=broker_port,
        access=access,
    )


def _drafter_options(model: str, cores: str) -> tuple[str, ...]:
    return ("--model", model, "--role", "drafter", "--cores", cores)


def node_name(model: str) -> str:
    """A model's name as part of a node id."""
    name = Path(os.path.normpath(Path(model).absolute())).name
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)[:40] or "model"


def distinct(names: Sequence[str]) -> list[str]:
    """Names of which the second and later ones of a kind are numbered; case does not count."""
    taken: dict[str, None] = {}
    for name in names:
        numbered = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
        taken[next(n for n in numbered if n.lower() not in map(str.lower, taken))] = None
    return list(taken)
