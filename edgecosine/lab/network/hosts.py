"""Hosts on an emulated network: the common interface of both kinds.

`namespaces.py` gives each host a network namespace and joins them by a hub, which needs root on
Linux; `relays.py` puts relays between processes of one machine, without privileges. Every host has
a cable with conditions of its own, so that a frame from host to host crosses two cables.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from edgecosine.discovery.peer import Address
from edgecosine.errors import LabError
from edgecosine.lab.line_process import LineProcess, pinned
from edgecosine.lab.network.conditions import IDEAL, NetworkConditions
from edgecosine.lab.network.traffic_messages import Change, Report, TrafficOrder
from edgecosine.local import child_processes as processes

Spawn = Callable[..., Awaitable[asyncio.subprocess.Process]]
"""Starts a command, as `child_processes.spawn`."""


class Host:
    """One machine of the lab: processes that share a cable."""

    def __init__(self, network: Network, name: str, address: str) -> None:
        self._network = network
        self.name = name
        self.address = address
        """Address on which its servers listen."""

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.address} {self._network.describe(self)}>"

    async def start(
        self,
        command: Sequence[str],
        *,
        log: Path | None = None,
        cores: str = "",
        env: Mapping[str, str] | None = None,
    ) -> asyncio.subprocess.Process:
        """Run a command on this host, on the processors of a list like 0,2-3.

        Returns the process. Its output goes to `log`, or to the process's `stdout`. It ends with
        the network.
        """
        return await self._network.start(self, command, log=log, cores=cores, env=env)


class Network(abc.ABC):
    """`async with network: host = await network.host("drafter-1")`; everything ends with the block.

    `conditions` are the default for hosts, `seed` determines losses, and `cores` are the processors
    of the process that carries the traffic.
    """

    has_multicast: bool
    """Whether hosts find each other by mDNS; otherwise they need each other's `address`."""

    def __init__(
        self,
        conditions: NetworkConditions = IDEAL,
        *,
        seed: int = 0,
        cores: str = "",
        spawn: Spawn = processes.spawn,
    ) -> None:
        self._default, self._seed, self._cores = conditions, seed, cores
        self._spawn = spawn
        self._conditions: dict[str, NetworkConditions] = {}
        self._cut: set[str] = set()
        self._processes: list[asyncio.subprocess.Process] = []
        self._stack = contextlib.AsyncExitStack()
        self._traffic: LineProcess | None = None
        self.hosts: dict[str, Host] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self.hosts)} hosts>"

    async def __aenter__(self) -> Self:
        async with self._stack as stack:
            self._traffic = await self._open(stack)
            stack.push_async_callback(self._stop_all)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._stack.aclose()

    async def host(self, name: str, conditions: NetworkConditions | None = None) -> Host:
        """Add a host.

        Raises LabError when the name is taken.
        """
        if name in self.hosts:
            raise LabError(f"there is a host {name!r} already")
        self._conditions[name] = self._default if conditions is None else conditions
        self.hosts[name] = await self._join(name, self._conditions[name])
        return self.hosts[name]

    def conditions(self, host: Host) -> NetworkConditions:
        """Current conditions of the host's cable."""
        return self._conditions[host.name]

    def describe(self, host: Host) -> str:
        """The state of the host's cable, as text."""
        return "cut" if host.name in self._cut else str(self._conditions[host.name])

    async def set_conditions(self, host: Host, conditions: NetworkConditions) -> None:
        """Change the conditions of the host's cable.

        Raises LabError for conditions that this network cannot emulate.
        """
        self._check(conditions)
        self._conditions[host.name] = conditions
        await self._change(host)

    async def partition(self, host: Host) -> None:
        """Cut the host's cable; connections notice only by silence."""
        self._cut.add(host.name)
        await self._change(host)

    async def heal(self, host: Host) -> None:
        """Mend the host's cable."""
        self._cut.discard(host.name)
        await self._change(host)

    @abc.abstractmethod
    async def address(self, of: Host, port: int, seen_from: Host | None = None) -> Address:
        """Address of a host's server as seen from another host, by default from this process.

        The route crosses both hosts' cables; this process has an ideal one.
        """

    async def report(self) -> dict[str, Any]:
        """Carried and lost frames by host, and processor time of the traffic process."""
        return await send_order(self.traffic, Report())

    async def start(
        self,
        host: Host,
        command: Sequence[str],
        *,
        log: Path | None = None,
        cores: str = "",
        env: Mapping[str, str] | None = None,
    ) -> asyncio.subprocess.Process:
        """See `Host.start`."""
        whole = (*self._entry(host), *pinned(command, cores))
        process = await self._spawn(whole, log, env=env)
        self._processes.append(process)
        return process

    @property
    def traffic(self) -> LineProcess:
        """The process that carries the traffic."""
        assert self._traffic is not None, "the network has not been entered"
        return self._traffic

    @abc.abstractmethod
    async def _open(self, stack: contextlib.AsyncExitStack) -> LineProcess:
        """Start the process that carries the traffic; clean-up goes on the stack."""

    @abc.abstractmethod
    async def _join(self, name: str, conditions: NetworkConditions) -> Host:
        """Make a host and give its cable to the traffic process."""

    @abc.abstractmethod
    def _entry(self, host: Host) -> tuple[str, ...]:
        """The prefix of a command that makes it run on a host."""

    @abc.abstractmethod
    def _check(self, conditions: NetworkConditions) -> None:
        """Raise LabError for conditions that this network cannot emulate."""

    async def _change(self, host: Host) -> None:
        conditions, is_cut = self._conditions[host.name], host.name in self._cut
        await send_order(self.traffic, Change(host.name, conditions, is_cut))

    async def _stop_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for process in self._processes:
                group.create_task(processes.stop(process))


async def send_order(process: LineProcess, order: TrafficOrder) -> dict[str, Any]:
    """Have a traffic process carry out an order; returns its reply.

    Raises LabError when the order fails.
    """
    reply = await process.ask(order, dict[str, Any])
    if "error" in reply:
        raise LabError(str(reply["error"]))
    return reply


def free_port() -> int:
    """A TCP port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
