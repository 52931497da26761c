"""Real hosts on real links: both networks apply their conditions and remove all their resources.

Bounds are such that a slow machine cannot break them: nothing is ever quicker than its delay or its
rate, and medians of round trips of a tenth of a second have fifty milliseconds to spare.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from edgecosine.errors import LabError
from edgecosine.lab.network.conditions import IDEAL, NetworkConditions
from edgecosine.lab.network.hosts import Host, Network
from edgecosine.lab.network.netns import namespaces
from edgecosine.lab.network.netns.namespaces import NamespaceNetwork
from edgecosine.lab.network.tcp_relay.relays import RelayNetwork

MACHINE = Path(__file__).with_name("second_machine.py")
FAULT = namespaces.why_not()
PATIENCE_S = 60.0

needs_namespaces = pytest.mark.skipif(FAULT is not None, reason=f"no network namespaces: {FAULT}")
either = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(NamespaceNetwork, marks=[needs_namespaces, pytest.mark.network]),
        RelayNetwork,
    ],
)
Kind = Callable[..., Network]


def _run(scenario: Any) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(PATIENCE_S):
            return await scenario

    return uvloop.run(bounded())


async def _read_json(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None
    return json.loads(await process.stdout.readline())


async def _start(host: Host, *words: str) -> asyncio.subprocess.Process:
    return await host.start((sys.executable, str(MACHINE), *words))


class Line:
    """A connection from this process to an echo on a host."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def round_trip(self) -> float:
        started = time.perf_counter()  # uvloop's own clock counts milliseconds
        self.writer.write(b"?")
        await self.reader.readexactly(1)
        return time.perf_counter() - started


@asynccontextmanager
async def line_to(network: Network, host: Host) -> AsyncIterator[Line]:
    """A connection that has already carried data."""
    port = await _read_json(await _start(host, "echo"))
    reader, writer = await asyncio.open_connection(*await network.address(host, port))
    try:
        line = Line(reader, writer)
        await line.round_trip()
        yield line
    finally:
        writer.close()


@either
def test_round_trip_is_twice_the_delay(kind: Kind) -> None:
    async def scenario() -> tuple[list[float], list[float]]:
        async with kind() as network:
            host = await network.host("far", NetworkConditions(delay_ms=50))
            async with line_to(network, host) as line:
                far = [await line.round_trip() for _ in range(15)]
                await network.set_conditions(host, IDEAL)
                return far, [await line.round_trip() for _ in range(15)]

    far, near = _run(scenario())
    assert min(far) >= 0.1
    assert statistics.median(far) < 0.15
    assert statistics.median(near) < 0.05


@either
def test_bytes_are_limited_by_the_rate(kind: Kind) -> None:
    num_bytes, rate_mbps = 1 << 20, 20.0

    async def scenario() -> float:
        async with kind() as network:
            host = await network.host("slow", NetworkConditions(rate_mbps=rate_mbps))
            async with line_to(network, host) as line:
                started = time.perf_counter()
                line.writer.write(bytes(num_bytes))
                await line.reader.readexactly(num_bytes)
                return time.perf_counter() - started

    assert _run(scenario()) >= num_bytes * 8e-6 / rate_mbps


@either
def test_partition_stalls_only_the_connections_of_one_host(kind: Kind) -> None:
    async def scenario() -> None:
        async with kind() as network:
            cut, other = [await network.host(name) for name in ("cut", "other")]
            async with line_to(network, cut) as cut_line, line_to(network, other) as other_line:
                await network.partition(cut)
                async with asyncio.TaskGroup() as group:
                    waiting = group.create_task(cut_line.round_trip())
                    for _ in range(100):
                        await other_line.round_trip()
                    assert not waiting.done()
                    await network.heal(cut)

    _run(scenario())


@either
def test_processes_end_with_the_network_also_after_a_failure(kind: Kind) -> None:
    async def scenario() -> asyncio.subprocess.Process:
        async with kind() as network:
            echo = await _start(await network.host("a"), "echo")
            await _read_json(echo)
            with pytest.raises(LabError, match="already"):
                await network.host("a")
            nonlocal process
            process = echo
            raise KeyError("a failure")

    process: asyncio.subprocess.Process | None = None
    with pytest.raises(KeyError, match="a failure"):
        _run(scenario())
    assert process is not None
    assert process.returncode is not None
    assert _own_namespaces(os.getpid()) == []


@either
def test_command_runs_on_its_cores_with_its_environment(kind: Kind) -> None:
    core = min(os.sched_getaffinity(0))
    code = "import json, os; print(json.dumps([*os.sched_getaffinity(0), os.environ['WORD']]))"

    async def scenario() -> Any:
        async with kind() as network:
            host = await network.host("a")
            command = (sys.executable, "-c", code)
            return await _read_json(await host.start(command, cores=str(core), env={"WORD": "x"}))

    assert _run(scenario()) == [core, "x"]


def test_relay_refuses_loss_and_duplication() -> None:
    async def scenario() -> None:
        async with RelayNetwork() as network:
            with pytest.raises(LabError, match="cannot lose"):
                await network.host("a", NetworkConditions(loss=0.1))
            with pytest.raises(LabError, match="cannot duplicate"):
                await network.host("b", NetworkConditions(duplication=0.1))

    _run(scenario())


@needs_namespaces
@pytest.mark.network
@pytest.mark.parametrize(
    ("conditions", "expected", "counter"),
    [
        (NetworkConditions(loss=0.2), 1600, "lost"),
        (NetworkConditions(duplication=0.2), 2400, "doubled"),
    ],
    ids=["lost", "doubled"],
)
def test_given_shares_of_frames_are_lost_and_doubled(
    conditions: NetworkConditions, expected: int, counter: str
) -> None:
    async def scenario() -> tuple[int, dict[str, Any]]:
        async with NamespaceNetwork(seed=3) as network:
            near, far = [await network.host(name) for name in ("near", "far")]
            counting = await _start(far, "count")
            port = await _read_json(counting)
            await network.set_conditions(far, conditions)
            await _start(near, "flood", far.address, str(port), "2000")
            return await _read_json(counting), await network.report()

    arrived, report = _run(scenario())
    # Six standard deviations: a seed decides, but frames of other protocols draw from it, too.
    assert expected - 110 < arrived < expected + 110
    assert report["hosts"]["far"][counter] > 0
    assert report["hosts"]["near"][counter] == 0


@needs_namespaces
@pytest.mark.network
def test_multicast_reaches_all_hosts() -> None:
    async def scenario() -> list[str]:
        async with NamespaceNetwork(NetworkConditions(delay_ms=1)) as network:
            hosts = [await network.host(f"host-{number}") for number in range(3)]
            listening = [await _start(host, "listen", host.address) for host in hosts[:2]]
            for process in listening:
                await _read_json(process)
            await _start(hosts[2], "send", hosts[2].address, "hello")
            return [await _read_json(process) for process in listening]

    assert _run(scenario()) == ["hello", "hello"]


OWNER = """
import asyncio, sys, uvloop
from edgecosine.lab.network.netns.namespaces import NamespaceNetwork

async def main():
    async with NamespaceNetwork() as network:
        host = await network.host("a")
        await host.start(("sh", "-c", "trap '' TERM; sleep 1000 & wait; sleep 1000"))
        print("up", flush=True)
        await asyncio.Event().wait()

uvloop.run(main())
"""


def _own_namespaces(pid: int) -> list[str]:
    done = subprocess.run(["ip", "netns", "list"], check=False, capture_output=True, text=True)
    names = [line.split()[0] for line in done.stdout.splitlines() if line]
    return [name for name in names if name.startswith(f"{namespaces.PREFIX}-{pid}-")]


def _owner_ended_by(number: signal.Signals) -> int:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        assert len(_own_namespaces(owner.pid)) == 2
        namespaces.remove_leftovers()
        assert len(_own_namespaces(owner.pid)) == 2
        owner.send_signal(number)
        owner.wait(PATIENCE_S)
        return owner.pid


@needs_namespaces
@pytest.mark.network
def test_interrupt_removes_all_namespaces() -> None:
    pid = _owner_ended_by(signal.SIGINT)
    assert _own_namespaces(pid) == []


@needs_namespaces
@pytest.mark.network
def test_next_start_removes_only_the_namespaces_of_a_killed_run() -> None:
    foreign = [f"ecs-{os.getpid()}-other", f"{namespaces.PREFIX}-of-another"]
    try:
        for name in foreign:
            subprocess.run(["ip", "netns", "add", name], check=True)
        pid = _owner_ended_by(signal.SIGKILL)
        left = _own_namespaces(pid)
        assert len(left) == 2
        assert sorted(namespaces.remove_leftovers()) == sorted(left)
        assert _own_namespaces(pid) == []
        done = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True)
        assert set(foreign) <= {line.split()[0] for line in done.stdout.splitlines()}
    finally:
        for name in foreign:
            subprocess.run(["ip", "netns", "del", name], check=False)
