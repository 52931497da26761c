"""A network of namespaces: every host has its own, and a hub in another one joins their cables.

Names are `ecslab-PID-START-HOST` with the process id and start time of the owner, so that leftovers
of a killed run are recognised and all other namespaces stay untouched.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from edgecosine.discovery.peer import Address
from edgecosine.errors import LabError
from edgecosine.lab.line_process import LineProcess, line_process, pinned
from edgecosine.lab.network.conditions import IDEAL, NetworkConditions
from edgecosine.lab.network.hosts import Host, Network, send_order
from edgecosine.lab.network.traffic_messages import Open, Plug

PREFIX = "ecslab"
MAX_HOSTS = 250
SUBNET = "10.77.0"
"""Used inside the namespaces only, so that it may also be in use outside."""

_NAME = re.compile(rf"{PREFIX}-(?P<pid>\d+)-(?P<start>\d+)-[a-z0-9-]+")
_HOST = re.compile(r"[a-z0-9-]{1,40}")
_HUB = "hub"
_US = "asker"
_WITHOUT_IPV6 = """
for switch in /proc/sys/net/ipv6/conf/all /proc/sys/net/ipv6/conf/default; do
    [ ! -e $switch ] || echo 1 >$switch/disable_ipv6
done
"""
"""The lab does not use IPv6, and the hub would have to carry its solicitations."""
_START_FIELD = 19
"""Index in /proc/PID/stat, counted after the name in brackets."""


class NamespaceNetwork(Network):
    """Real interfaces and sockets for every protocol, including multicast. Needs root and `ip`."""

    has_multicast = True

    async def address(self, of: Host, port: int, seen_from: Host | None = None) -> Address:
        """The host's own address; for this process a port of loopback that is relayed to it.

        This process stays in its own namespace. It reaches the lab by a relay in the namespace of
        another host that accepts connections on a socket opened here.
        """
        if seen_from is not None:
            return Address(of.address, port)
        us = self.hosts.get(_US) or await self.host(_US, IDEAL)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            command = pinned(
                (sys.executable, "-m", "edgecosine.lab.network.tcp_relay.relay", "0"), self._cores
            )
            relay = await self._stack.enter_async_context(
                line_process(
                    "the relay", (*self._entry(us), *command), descriptors=(listener.fileno(),)
                )
            )
            answer = await send_order(relay, Open(of.address, port, descriptor=listener.fileno()))
        return Address("127.0.0.1", answer["port"])

    async def _open(self, stack: contextlib.AsyncExitStack) -> LineProcess:
        remove_leftovers()
        self._names = own_name(os.urandom(2).hex())
        stack.callback(self._remove)
        await self._add(_HUB)
        command = (sys.executable, "-m", "edgecosine.lab.network.netns.hub", str(self._seed))
        inside = (*_inside(self._name(_HUB)), *pinned(command, self._cores))
        return await stack.enter_async_context(line_process("the hub", inside))

    async def _join(self, name: str, conditions: NetworkConditions) -> Host:
        if not _HOST.fullmatch(name) or name == _HUB:
            raise LabError(f"{name!r} is no name for a host: letters a to z, digits and -")
        number = len(self.hosts) + 1
        if number > MAX_HOSTS:
            raise LabError(f"a network has at most {MAX_HOSTS} hosts")
        hub, own, address = self._name(_HUB), self._name(name), f"{SUBNET}.{number}"
        port, cable = f"port{number}", f"cable{number}"
        await self._add(name)
        await _ip("-n", hub, "link", "add", port, "type", "veth", "peer", "name", cable)
        # Both ends are still in the hub's namespace, and it turns their offloads off.
        await send_order(self.traffic, Plug(name, conditions, (port, cable)))
        await _ip("-n", hub, "link", "set", port, "up")
        await _ip("-n", hub, "link", "set", cable, "netns", own)
        await _ip("-n", own, "addr", "add", f"{address}/24", "dev", cable)
        await _ip("-n", own, "link", "set", cable, "up")
        return Host(self, name, address)

    def _entry(self, host: Host) -> tuple[str, ...]:
        return _inside(self._name(host.name))

    def _check(self, conditions: NetworkConditions) -> None:
        """The hub emulates all conditions."""

    def _name(self, host: str) -> str:
        return f"{self._names}-{host}"

    async def _add(self, host: str) -> None:
        name = self._name(host)
        await _ip("netns", "add", name)
        await _ip("-n", name, "link", "set", "lo", "up")
        await _run(*_inside(name), "sh", "-c", _WITHOUT_IPV6)

    def _remove(self) -> None:
        for name in _namespaces():
            if name.startswith(f"{self._names}-"):
                _delete(name)


def why_not() -> str | None:
    """The reason why network namespaces cannot be used here; None when they can."""
    if shutil.which("ip") is None:
        return "there is no ip command (Debian: apt install iproute2)"
    if os.geteuid() != 0:
        return "not root"
    return _why_not_by_trying()


@functools.cache
def _why_not_by_trying() -> str | None:
    name = own_name("probe")
    try:
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip()
    _delete(name)
    return None


def own_name(tail: str) -> str:
    """The name of a resource that this process creates and that must not outlive it."""
    return f"{PREFIX}-{os.getpid()}-{_start_of(os.getpid())}-{tail}"


def is_left_over(name: str) -> bool:
    """Whether the process that created this resource has ended."""
    match = _NAME.fullmatch(name)
    return match is not None and _start_of(int(match["pid"])) != match["start"]


def remove_leftovers() -> list[str]:
    """Remove the namespaces of labs whose owner has ended, with their processes."""
    gone = []
    for name in _namespaces():
        if is_left_over(name):
            _delete(name)
            gone.append(name)
    return gone


def _namespaces() -> list[str]:
    done = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True)
    return [line.split()[0] for line in done.stdout.splitlines() if line]


def _delete(name: str) -> None:
    """Remove one namespace, after its processes, which would keep it alive."""
    inside = subprocess.run(
        ["ip", "netns", "pids", name], check=False, capture_output=True, text=True
    )
    for pid in inside.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _start_of(pid: int) -> str | None:
    """Start of a process, in ticks since boot; None when it does not exist."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat.rpartition(")")[2].split()[_START_FIELD]


def _inside(name: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", name)


async def _ip(*words: str) -> None:
    await _run("ip", *words)


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    if process.returncode:
        raise LabError(f"{' '.join(command)}: {errors.decode(errors='replace').strip()}")
