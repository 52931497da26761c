"""Hosts on a network with weather: the one interface to both ways of making it.

`namespaces.py` gives each host a network of its own and joins them by a hub, which needs root on
Linux; `relays.py` puts relays between processes of one machine, which needs nothing. Every host
hangs on a cable of its own, and weather is a cable's: from host to host a frame crosses two.
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
from edgecosine.lab.network.conditions import FINE, NetworkConditions
from edgecosine.lab.network.traffic_messages import Change, Report
from edgecosine.lab.network.traffic_process import Carrier
from edgecosine.local import child_processes as processes

Spawn = Callable[..., Awaitable[asyncio.subprocess.Process]]
"""Starts a command, as `child_processes.spawn`."""


class Host:
    """One machine of the lab: processes that share a cable."""

    def __init__(self, network: Network, name: str, address: str) -> None:
        self._network = network
        self.name = name
        self.address = address
        """Where its own servers listen."""

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

        Its output goes to `log`, or into the process's `stdout`. It ends with the network.
        """
        return await self._network.start(self, command, log=log, cores=cores, env=env)


class Network(abc.ABC):
    """`async with network: host = await network.host("drafter-1")`; all ends with the block.

    `weather` is that of hosts for which nothing else is said, `seed` decides what is lost, and
    `cores` are the processors on which the traffic is carried.
    """

    has_multicast: bool
    """Whether hosts find each other by mDNS; else they must be told with `address`."""

    def __init__(
        self,
        weather: NetworkConditions = FINE,
        *,
        seed: int = 0,
        cores: str = "",
        spawn: Spawn = processes.spawn,
    ) -> None:
        self._default, self._seed, self._cores = weather, seed, cores
        self._spawn = spawn
        self._weather: dict[str, NetworkConditions] = {}
        self._cut: set[str] = set()
        self._processes: list[asyncio.subprocess.Process] = []
        self._stack = contextlib.AsyncExitStack()
        self._carrier: Carrier | None = None
        self.hosts: dict[str, Host] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self.hosts)} hosts>"

    async def __aenter__(self) -> Self:
        async with self._stack as stack:
            self._carrier = await self._open(stack)
            stack.push_async_callback(self._carrier.stop)
            stack.push_async_callback(self._stop_all)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._stack.aclose()

    async def host(self, name: str, weather: NetworkConditions | None = None) -> Host:
        """One more machine.

        Raises LabError when the name is taken.
        """
        if name in self.hosts:
            raise LabError(f"there is a host {name!r} already")
        self._weather[name] = self._default if weather is None else weather
        self.hosts[name] = await self._join(name, self._weather[name])
        return self.hosts[name]

    def weather(self, host: Host) -> NetworkConditions:
        """What the host's cable has now."""
        return self._weather[host.name]

    def describe(self, host: Host) -> str:
        """The state of the host's cable, for people."""
        return "cut" if host.name in self._cut else str(self._weather[host.name])

    async def set_weather(self, host: Host, weather: NetworkConditions) -> None:
        """Give the host's cable other weather, from now on."""
        self._check(weather)
        self._weather[host.name] = weather
        await self._change(host)

    async def partition(self, host: Host) -> None:
        """Cut the host's cable; nobody is told."""
        self._cut.add(host.name)
        await self._change(host)

    async def heal(self, host: Host) -> None:
        """Mend the host's cable."""
        self._cut.discard(host.name)
        await self._change(host)

    @abc.abstractmethod
    async def address(self, of: Host, port: int, seen_from: Host | None = None) -> Address:
        """Where a server of a host is reached from another; from this process when none is given.

        The way crosses both hosts' cables; this process is a host with a fine one.
        """

    async def report(self) -> dict[str, Any]:
        """What was carried and lost by host, and what the carrier's process spent on it."""
        return await self.carrier.tell(Report())

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
    def carrier(self) -> Carrier:
        """The process that carries the traffic."""
        assert self._carrier is not None, "the network has not been entered"
        return self._carrier

    @abc.abstractmethod
    async def _open(self, stack: contextlib.AsyncExitStack) -> Carrier:
        """Start the carrier; what must be undone goes on the stack."""

    @abc.abstractmethod
    async def _join(self, name: str, weather: NetworkConditions) -> Host:
        """Make a host and give its cable to the carrier."""

    @abc.abstractmethod
    def _entry(self, host: Host) -> tuple[str, ...]:
        """The words before a command that make it run on a host."""

    @abc.abstractmethod
    def _check(self, weather: NetworkConditions) -> None:
        """Raise LabError for weather that this network cannot make."""

    async def _change(self, host: Host) -> None:
        weather, is_cut = self._weather[host.name], host.name in self._cut
        await self.carrier.tell(Change(host.name, weather, is_cut))

    async def _stop_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for process in self._processes:
                group.create_task(processes.stop(process))


def pinned(command: Sequence[str], cores: str) -> tuple[str, ...]:
    """The command, kept on the processors of a list like 0,2-3; everywhere without one."""
    return ("taskset", "--cpu-list", cores, *command) if cores else tuple(command)


def free_port() -> int:
    """A TCP port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
