"""A whole cluster in the lab: broker, target and drafters, each on a host of its own.

Network conditions apply to the cables of drafters and members; broker, target and client have ideal
ones, so that effects on speculation are not mixed with effects on requests. The target has its own
cores, and the drafters share the others with the broker and the traffic process.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.discovery.peer import Address
from edgecosine.errors import LabError
from edgecosine.lab.figures import Notify
from edgecosine.lab.hostile_drafter import Harm
from edgecosine.lab.network.conditions import IDEAL, NetworkConditions
from edgecosine.lab.network.hosts import Host, Network, Spawn, free_port
from edgecosine.lab.network.netns import namespaces
from edgecosine.lab.network.netns.namespaces import NamespaceNetwork
from edgecosine.lab.network.tcp_relay.relays import LOOPBACK, RelayNetwork
from edgecosine.lab.slowed_command import slowed
from edgecosine.local import child_processes
from edgecosine.local.cluster import Environment, LocalCluster
from edgecosine.local.cluster_plan import ClusterPlan, LocalNode, node_name

NetworkKind = Literal["auto", "namespaces", "relays"]
StartBroker = Callable[[Host, int], Awaitable[None]]
"""Starts a broker on a host and port; it ends with the network."""
EnvironmentOf = Callable[[str], Environment]
"""Environment variables of a node, by node id."""

_BROKER_PORT = 1883
BROKER = "broker"
TARGET = "target"
"""Names of their hosts; the target's is also its node id."""


@dataclass(frozen=True, slots=True)
class LabPlan:
    """The nodes to run. `drafters` are models, each on a node of its own; core lists have the form
    of `edgecosine node --cores`."""

    drafters: tuple[str, ...]
    target: str = zoo.TARGET
    ballast: int = zoo.BALLAST
    conditions: NetworkConditions = IDEAL
    """Network conditions of every drafter's cable at the start."""
    network: NetworkKind = "auto"
    seed: int = 0
    target_cores: str = ""
    drafter_cores: str = ""
    target_options: tuple[str, ...] = ()
    """More options of `edgecosine node`."""
    drafter_options: tuple[str, ...] = ()
    least_pass_s: float = 0.0
    """Shortest duration of a target's forward pass, in seconds; 0: the engine is not slowed."""
    least_step_s: float = 0.0
    """Shortest duration of a drafter's step, in seconds; 0: the engine is not slowed."""
    on_one_host: bool = False
    """Drafters run on the target's host and use its loopback, without network conditions."""
    members: tuple[str, ...] = ()
    """Models that answer together with the target's own, each on a node of its own; a model that is
    listed twice is one member on two nodes. All weights are equal."""
    harm: Harm | None = None
    """What the drafters do wrong on purpose; None: they are honest."""

    @property
    def drafter_nodes(self) -> tuple[tuple[str, str], ...]:
        """Node id and model of each drafter; the id is the model's name and a number."""
        return tuple((f"{node_name(m).lower()}-{i}", m) for i, m in enumerate(self.drafters))

    @property
    def member_nodes(self) -> tuple[tuple[str, str], ...]:
        """Node id and model of each member."""
        return tuple((f"member-{i}", model) for i, model in enumerate(self.members))

    @property
    def committee_options(self) -> tuple[str, ...]:
        """The target's options that name the members."""
        names = tuple(dict.fromkeys(map(member_name, self.members)))
        weight = 1 / (1 + len(names))
        return tuple(f"--committee={name}={weight:.6f}" for name in names)


def member_name(model: str) -> str:
    """The name of the member that holds a model."""
    return node_name(model).lower()


@dataclass(frozen=True, slots=True)
class LabCluster:
    """A running cluster and its network."""

    plan: LabPlan
    name: str
    network: Network
    local: LocalCluster
    client: Client
    hosts: dict[str, Host]
    """The hosts of the nodes, by node id, and of the broker."""

    @property
    def broker_url(self) -> str:
        """URL of the broker for this process."""
        return self.local.broker_url

    @property
    def drafters(self) -> tuple[str, ...]:
        """Node ids of the drafters."""
        return tuple(node_id for node_id, _ in self.plan.drafter_nodes)

    @property
    def members(self) -> tuple[str, ...]:
        """Node ids of the members."""
        return tuple(node_id for node_id, _ in self.plan.member_nodes)

    async def set_conditions(
        self, conditions: NetworkConditions, drafters: Sequence[str] = ()
    ) -> None:
        """Change the network conditions of some drafters, by node id; of all when none are named.

        Raises LabError, also where drafters have no cables of their own.
        """
        if self.plan.on_one_host:
            raise LabError("drafters on the target's host have no network conditions")
        for host in self._hosts_of(drafters):
            await self.network.set_conditions(host, conditions)

    async def set_cut(self, drafters: Sequence[str] = (), *, is_cut: bool) -> None:
        """Cut or mend the cables of some drafters, by node id; of all when none are named.

        Raises LabError.
        """
        change = self.network.partition if is_cut else self.network.heal
        for host in self._hosts_of(drafters):
            await change(host)

    def _hosts_of(self, drafters: Sequence[str]) -> list[Host]:
        unknown = set(drafters) - set(self.drafters)
        if unknown:
            there = ", ".join(self.drafters)
            raise LabError(f"no drafter {', '.join(sorted(unknown))}; there are {there}")
        return [self.hosts[node_id] for node_id in drafters or self.drafters]


def make_network(
    kind: NetworkKind, *, seed: int = 0, cores: str = "", spawn: Spawn = child_processes.spawn
) -> Network:
    """A network of this kind; "auto" is namespaces where possible, otherwise relays.

    Raises LabError when namespaces are requested and impossible.
    """
    fault = namespaces.why_not() if kind != "relays" else None
    if kind == "namespaces" and fault is not None:
        raise LabError(f"no network namespaces here: {fault}")
    if kind == "relays" or fault is not None:
        return RelayNetwork(seed=seed, cores=cores, spawn=spawn)
    return NamespaceNetwork(seed=seed, cores=cores, spawn=spawn)


@asynccontextmanager
async def lab_cluster(
    plan: LabPlan,
    notify: Notify,
    *,
    start_broker: StartBroker | None = None,
    environment: EnvironmentOf = lambda _: {},
    spawn: Spawn = child_processes.spawn,
) -> AsyncIterator[LabCluster]:
    """Start a cluster; entered when all drafters are linked. Everything ends with the block.

    Its broker is the embedded one unless `start_broker` starts another.

    Raises LabError, EngineError with a node's last output, and BrokerLost.
    """
    async with contextlib.AsyncExitStack() as stack:
        network = make_network(plan.network, seed=plan.seed, cores=plan.drafter_cores, spawn=spawn)
        await stack.enter_async_context(network)
        joined = "mDNS in namespaces" if network.has_multicast else "address, over relays"
        cable = "none" if plan.on_one_host else str(plan.conditions)
        notify(f"network: nodes find each other by {joined}; each drafter's cable: {cable}")
        broker = await network.host(BROKER, IDEAL)
        port = _BROKER_PORT if network.has_multicast else free_port()
        await (start_broker or _embedded(plan))(broker, port)
        url = f"mqtt://{await network.address(broker, port)}"
        hosts = {BROKER: broker, TARGET: await network.host(TARGET, IDEAL)}
        for node_id, _ in (*plan.drafter_nodes, *plan.member_nodes):
            hosts[node_id] = (
                hosts[TARGET] if plan.on_one_host else await network.host(node_id, plan.conditions)
            )
        cluster = f"lab-{secrets.token_hex(3)}"
        harms = {} if plan.harm is None else dict.fromkeys(dict(plan.drafter_nodes), plan.harm)
        launcher = _HostLauncher(plan, network, broker, port, hosts, environment, harms)
        local = LocalCluster(
            await _cluster_plan(plan, cluster, url, launcher), notify, launcher.launch
        )
        await stack.enter_async_context(local)
        client = await stack.enter_async_context(Client(url, cluster))
        yield LabCluster(plan, cluster, network, local, client, hosts)


@dataclass(frozen=True, slots=True)
class _HostLauncher:
    """Starts nodes on their hosts, with the addresses of the broker and of each other."""

    plan: LabPlan
    network: Network
    broker: Host
    broker_port: int
    hosts: dict[str, Host]
    environment: EnvironmentOf
    harms: Mapping[str, Harm]

    async def launch(
        self, node_id: str, command: Sequence[str], log: Path, env: Environment
    ) -> Process:
        whole = {**env, **self.environment(node_id)}
        if node_id in self.harms:
            # `command` begins with python -m edgecosine node.
            hostile = ("-m", "edgecosine.cli.hostile_drafter", self.harms[node_id])
            command = (command[0], *hostile, *command[4:])
        else:
            plan = self.plan
            command = slowed(command, plan.least_pass_s if node_id == TARGET else plan.least_step_s)
        return await self.hosts[node_id].start(command, log=log, env=whole)

    async def options(self, node_id: str, target_port: int) -> tuple[str, ...]:
        host, network = self.hosts[node_id], self.network
        broker = await network.address(self.broker, self.broker_port, seen_from=host)
        options: tuple[str, ...] = ("--broker", f"mqtt://{broker}")
        if network.has_multicast:
            return (*options, "--insecure")
        if node_id == TARGET:
            return (*options, "--no-mdns", "--listen", f"{LOOPBACK}:{target_port}")
        if host is self.hosts[TARGET]:
            peer = Address(LOOPBACK, target_port)
        else:
            peer = await network.address(self.hosts[TARGET], target_port, seen_from=host)
        return (*options, "--no-mdns", "--listen", f"{LOOPBACK}:0", "--peer", str(peer))


def _embedded(plan: LabPlan) -> StartBroker:
    async def start(host: Host, port: int) -> None:
        listen = f"{host.address}:{port}"
        process = await host.start(
            (sys.executable, "-m", "edgecosine", "broker", "--listen", listen, "--insecure"),
            cores=plan.drafter_cores,
        )
        assert process.stdout is not None
        if not await process.stdout.readline():
            raise LabError("the broker did not start; its output is above")

    return start


async def _cluster_plan(
    plan: LabPlan, cluster: str, url: str, launcher: _HostLauncher
) -> ClusterPlan:
    port = free_port()

    async def node(node_id: str, *options: str) -> LocalNode:
        return LocalNode(node_id, (*options, *await launcher.options(node_id, port)))

    served = ("--ballast", str(plan.ballast), "--cores", plan.target_cores)
    drafting = ("--role", "drafter", "--cores", plan.drafter_cores, *plan.drafter_options)
    judging = ("--role", "member", *served, *plan.drafter_options)
    return ClusterPlan(
        cluster=cluster,
        broker=url,
        target=await node(
            TARGET, "--model", plan.target, "--role", "target", *served, *plan.committee_options,
            *plan.target_options,
        ),
        drafters=(
            *[await node(n, "--model", model, *drafting) for n, model in plan.drafter_nodes],
            *[
                await node(n, "--model", model, "--member", member_name(model), *judging)
                for n, model in plan.member_nodes
            ],
        ),
    )  # fmt: skip
