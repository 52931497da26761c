"""Nodes on two machines: network namespaces joined by a cable, with one kind of address each."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.node.links.wire_fixtures import run

ROOT = Path(__file__).parents[3]
NEAR, FAR = f"ecs{os.getpid()}a", f"ecs{os.getpid()}b"
ADDRESSES = {
    "IPv4": ("10.77.1.{}/24", []),
    "IPv6": ("fd77:1::{}/64", ["nodad"]),
    "link-local IPv6": ("fe80::77:{}/64", ["nodad"]),
}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _fault() -> str | None:
    """Why network namespaces cannot be used here, if they cannot."""
    if shutil.which("ip") is None:
        return "there is no ip command"
    if os.geteuid() != 0:
        return "not root"
    try:
        ip("netns", "add", NEAR)
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip()
    ip("netns", "del", NEAR)
    return None


@contextmanager
def two_machines(family: str) -> Iterator[None]:
    """Two namespaces with one cable between them, on which only one family has addresses."""
    pattern, options = ADDRESSES[family]
    try:
        for name in (NEAR, FAR):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "cable", "netns", NEAR, "type", "veth", "peer", "name", "cable",
           "netns", FAR)  # fmt: skip
        for number, name in enumerate((NEAR, FAR), start=1):
            if family == "IPv4":
                switch = ["netns", "exec", name, "sysctl", "-qw"]
                ip(*switch, "net.ipv6.conf.all.disable_ipv6=1")
            else:
                ip("-n", name, "addr", "del", "127.0.0.1/8", "dev", "lo")
                ip("-n", name, "link", "set", "cable", "addrgenmode", "none")
            ip("-n", name, "addr", "add", pattern.format(number), "dev", "cable", *options)
            ip("-n", name, "link", "set", "cable", "up")
        yield
    finally:
        for name in (NEAR, FAR):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


class Process:
    """A node in a namespace, and its reports."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def report(self, key: str) -> dict[str, Any]:
        """The next line that holds `key`."""
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            facts: dict[str, Any] = json.loads(line)
            if key in facts:
                return facts
        raise AssertionError(f"the node ended without saying {key}")


@asynccontextmanager
async def living(namespace: str, role: str, name: str) -> AsyncIterator[Process]:
    command = [
        "ip",
        "netns",
        "exec",
        namespace,
        sys.executable,
        "-m",
        "tests.node.links.peer_process",
    ]
    process = await asyncio.create_subprocess_exec(
        *command, role, name, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


FAULT = _fault()


@pytest.mark.network
@pytest.mark.skipif(FAULT is not None, reason=f"no network namespaces: {FAULT}")
@pytest.mark.parametrize("family", ADDRESSES)
def test_nodes_of_two_machines_link_and_detect_a_death(family: str) -> None:
    async def main() -> None:
        async with living(NEAR, "target", "target-1") as target:
            await target.report("listening")
            for name in ("drafter-1", "drafter-2"):
                async with living(FAR, "drafter", name) as drafter:
                    assert await target.report("joined") == {"joined": name, "answered": True}
                    assert (await drafter.report("joined"))["joined"] == "target-1"
                    drafter.process.kill()
                    assert (await target.report("lost"))["lost"] == name

    with two_machines(family):
        run(main())


def unplug(name: str) -> None:
    ip("-n", name, "addr", "flush", "dev", "cable")
    ip("-n", name, "link", "set", "cable", "down")


def plug(name: str, address: str) -> None:
    ip("-n", name, "addr", "add", address, "dev", "cable")
    ip("-n", name, "link", "set", "cable", "up")


@pytest.mark.network
@pytest.mark.skipif(FAULT is not None, reason=f"no network namespaces: {FAULT}")
@pytest.mark.parametrize("late", ["target", "drafter"])
def test_node_started_before_its_network_is_found_later(late: str) -> None:
    async def main() -> None:
        unplug(NEAR if late == "target" else FAR)
        async with (
            living(NEAR, "target", "target-1") as target,
            living(FAR, "drafter", "drafter-1") as drafter,
        ):
            await target.report("listening")
            await drafter.report("listening")
            await asyncio.sleep(1)  # time in which no report comes
            plug(*(NEAR, "10.77.1.1/24") if late == "target" else (FAR, "10.77.1.2/24"))
            assert await target.report("joined") == {"joined": "drafter-1", "answered": True}

    with two_machines("IPv4"):
        run(main())


@pytest.mark.network
@pytest.mark.skipif(FAULT is not None, reason=f"no network namespaces: {FAULT}")
def test_later_network_is_detected() -> None:
    async def main() -> None:
        ip("-n", FAR, "link", "set", "cable", "down")
        async with (
            living(NEAR, "target", "target-1") as target,
            living(FAR, "drafter", "drafter-1") as drafter,
        ):
            await target.report("listening")
            await drafter.report("listening")
            await asyncio.sleep(1)
            ip("-n", FAR, "link", "set", "cable", "up")
            assert await target.report("joined") == {"joined": "drafter-1", "answered": True}

    with two_machines("IPv4"):
        run(main())


@pytest.mark.network
@pytest.mark.skipif(FAULT is not None, reason=f"no network namespaces: {FAULT}")
def test_changed_address_is_announced() -> None:
    async def main() -> None:
        async with living(FAR, "drafter", "drafter-1") as drafter:
            await drafter.report("listening")
            await asyncio.sleep(0.5)
            ip("-n", FAR, "addr", "flush", "dev", "cable")
            plug(FAR, "10.77.1.77/24")
            await asyncio.sleep(0.5)
            async with living(NEAR, "target", "target-1") as target:
                assert await target.report("joined") == {"joined": "drafter-1", "answered": True}

    with two_machines("IPv4"):
        run(main())


@pytest.mark.network
@pytest.mark.skipif(FAULT is not None, reason=f"no network namespaces: {FAULT}")
def test_nodes_of_a_machine_without_a_network_link() -> None:
    async def main() -> None:
        async with living(NEAR, "target", "target-1") as target:
            await target.report("listening")
            async with living(NEAR, "drafter", "drafter-1"):
                assert await target.report("joined") == {"joined": "drafter-1", "answered": True}

    with two_machines("IPv4"):
        ip("-n", NEAR, "link", "del", "cable")
        run(main())


DEAF = """
import asyncio, uvloop
from edgecosine.discovery.mdns import Mdns, multicast_works
from tests.discovery.adverts import advert

async def main():
    assert not await multicast_works(self_test_s=0.5)
    try:
        async with asyncio.timeout(1.0):
            await Mdns(self_test_s=0.5).run(advert(addresses=("127.0.0.1",)), print)
    except TimeoutError:
        pass

uvloop.run(main())
"""


@pytest.mark.network
@pytest.mark.skipif(FAULT is not None, reason=f"no network namespaces: {FAULT}")
@pytest.mark.skipif(shutil.which("nft") is None, reason="there is no nft command")
def test_dropped_multicast_is_detected() -> None:
    rules = "add table inet t; add chain inet t o { type filter hook output priority 0; }; "
    rules += "add rule inet t o udp dport 5353 drop"
    with two_machines("IPv4"):
        ip("netns", "exec", NEAR, "nft", rules)
        command = ["ip", "netns", "exec", NEAR, sys.executable, "-c", DEAF]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "our own announcement did not come back within 0.5 s" in process.stderr
    assert "--peer HOST:PORT" in process.stderr
