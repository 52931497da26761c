"""Measures the cost of journal and TLS: clusters with and without them receive the same requests.

The protected cluster is set up as by an operator: an authority, certificates on every link,
Mosquitto configured by `cluster broker-config`, and a journal. The plain one has none of them;
otherwise its Mosquitto has the same settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.errors import LabError
from edgecosine.lab.figures import Notify
from edgecosine.lab.harness import wait_for_drafters, wait_for_target
from edgecosine.lab.load_generator import closed_loop, make_jobs
from edgecosine.lab.network.hosts import free_port
from edgecosine.local import child_processes as processes
from edgecosine.local.embedded_broker import EmbeddedBroker, find_mosquitto
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.protocol.api.request import DEFAULT_POLICY

_CLUSTER = "protection"
_USER = "bench"
_SESSIONS = 8
_DRAFTER = "generalist"
_LOOPBACK = "127.0.0.1"
_COMMAND_S = 60.0
_START_S = 120.0
_POLLS, _POLL_S = 500, 0.02


@dataclass(frozen=True, slots=True)
class ProtectionSettings:
    """Number and length of requests; core lists as for `edgecosine node`."""

    repeats: int
    requests: int
    max_tokens: int
    ballast: int
    target_cores: str
    drafter_cores: str


@dataclass(frozen=True, slots=True)
class ProtectionRun:
    """Tokens per second of one repetition."""

    plain: float
    protected: float

    @property
    def cost(self) -> float:
        """Share of the throughput that protection costs."""
        return 1.0 - self.protected / self.plain


async def measure_protection(settings: ProtectionSettings, notify: Notify) -> list[ProtectionRun]:
    """Send requests to both clusters, in alternating order; the first repetition warms up.

    Raises LabError, EngineError, BrokerLost and RequestError.
    """
    runs: list[ProtectionRun] = []
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgecosine-")))
        plain = await stack.enter_async_context(_plain(settings, folder / "plain"))
        protected = await stack.enter_async_context(_protected(settings, folder / "protected"))
        for repeat in range(settings.repeats + 1):
            jobs = make_jobs(
                settings.requests, offset=repeat * settings.requests, policy=DEFAULT_POLICY,
                temperature=0.0, max_tokens=settings.max_tokens,
            )  # fmt: skip
            order = (plain, protected) if repeat % 2 else (protected, plain)
            loads = {client: await closed_loop(client, jobs, _SESSIONS) for client in order}
            run = ProtectionRun(loads[plain].tokens_per_s, loads[protected].tokens_per_s)
            if repeat:
                runs.append(run)
                notify(
                    f"protection: {run.plain:.0f} tokens/s without, {run.protected:.0f} with "
                    f"journal and TLS ({repeat} of {settings.repeats})"
                )
    return runs


@asynccontextmanager
async def _plain(settings: ProtectionSettings, folder: Path) -> AsyncIterator[Client]:
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        broker = await enter(EmbeddedBroker(port=free_port(), kind="mosquitto"))
        machine, port = _Machine(folder), free_port()
        options = ("--broker", broker.url, "--credentials", "none")
        await enter(machine.node(*_target(settings, port), *options, "--no-journal"))
        await enter(machine.node(*_drafter(settings, port), *options))
        client = await enter(Client(broker.url, _CLUSTER))
        await _linked(client)
        yield client


@asynccontextmanager
async def _protected(settings: ProtectionSettings, folder: Path) -> AsyncIterator[Client]:
    target, drafter = (_Machine(folder / role) for role in ("target", "drafter"))
    client_port, node_port, link_port = free_port(), free_port(), free_port()
    await target.run_command(
        "init", "--node-id", "target", "--listen", f"{_LOOPBACK}:{free_port()}"
    )
    printed = await target.run_command(
        "broker-config", str(folder / "broker"), "--host", _LOOPBACK, "--client", _USER,
        "--port", str(client_port), "--node-port", str(node_port),
    )  # fmt: skip
    access = BrokerAddress.parse(
        f"mqtts://{_LOOPBACK}:{client_port}", username=_USER, password=printed.split()[1],
        ca_file=target.folder / "edgecosine" / _CLUSTER / "authorities.pem",
    )  # fmt: skip
    options = ("--broker", f"mqtts://{_LOOPBACK}:{node_port}")
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        await enter(_mosquitto(folder / "broker", client_port))
        state = ("--state-dir", str(folder / "state"))
        await enter(target.node(*_target(settings, link_port), *options, *state))
        client = await enter(Client(access, _CLUSTER))
        await wait_for_target(client)
        token = await target.run_command("invite")
        await drafter.run_command("join", token.strip(), "--node-id", "drafter")
        await enter(drafter.node(*_drafter(settings, link_port), *options))
        await _linked(client)
        yield client


def _target(settings: ProtectionSettings, port: int) -> tuple[str, ...]:
    return (
        "--role=target", f"--model={zoo.TARGET}", f"--ballast={settings.ballast}",
        f"--listen={_LOOPBACK}:{port}", f"--cores={settings.target_cores}",
    )  # fmt: skip


def _drafter(settings: ProtectionSettings, port: int) -> tuple[str, ...]:
    return (
        "--role=drafter", f"--model={_DRAFTER}", f"--peer={_LOOPBACK}:{port}",
        f"--listen={_LOOPBACK}:0", f"--cores={settings.drafter_cores}",
    )  # fmt: skip


async def _linked(client: Client) -> None:
    """Wait until the target is linked with its drafter.

    Raises LabError.
    """
    try:
        async with asyncio.timeout(_START_S):
            await wait_for_drafters(client)
    except TimeoutError:
        raise LabError("the nodes did not find each other") from None


@asynccontextmanager
async def _mosquitto(folder: Path, port: int) -> AsyncIterator[None]:
    """Run the broker of `cluster broker-config`; entered when it accepts connections.

    Raises LabError.
    """
    conf = folder / "mosquitto.conf"
    if os.geteuid() == 0:
        # Otherwise it would drop root's privileges and could not read this process's files.
        conf.write_text(f"{conf.read_text()}user root\n")
    command = (find_mosquitto() or "mosquitto", "-c", str(conf))
    process = await processes.spawn(command, folder / "log")
    try:
        await _accepts(port)
        yield
    finally:
        await processes.stop(process)


async def _accepts(port: int) -> None:
    for _ in range(_POLLS):
        try:
            _, writer = await asyncio.open_connection(_LOOPBACK, port)
        except OSError:
            await asyncio.sleep(_POLL_S)
        else:
            writer.close()
            return
    raise LabError("Mosquitto does not accept connections")


class _Machine:
    """A separate configuration directory, as on another machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.environment = {"XDG_CONFIG_HOME": str(folder)}

    async def run_command(self, *words: str) -> str:
        """Run a command of `edgecosine cluster`; returns its output.

        Raises LabError when it fails.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edgecosine", "cluster", "--cluster", _CLUSTER, *words,
            stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env={**os.environ, **self.environment},
        )  # fmt: skip
        async with asyncio.timeout(_COMMAND_S):
            out, err = await process.communicate()
        if process.returncode:
            raise LabError(f"`edgecosine cluster {words[0]}` failed: {err.decode().strip()}")
        return out.decode()

    @asynccontextmanager
    async def node(self, *options: str) -> AsyncIterator[None]:
        """Run a node during the block."""
        command = (sys.executable, "-m", "edgecosine", "node", "--cluster", _CLUSTER, "--no-mdns")
        log = self.folder / "node.log"
        process = await processes.spawn((*command, *options), log, env=self.environment)
        try:
            yield
        finally:
            await processes.stop(process)
