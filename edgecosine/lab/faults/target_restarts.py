"""How soon a request goes on after its target was killed: starts with and without one, in turn."""

from __future__ import annotations

import contextlib
import secrets
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.errors import LabError
from edgecosine.lab.network.hosts import free_port
from edgecosine.local import child_processes as processes
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.protocol.api.request import Delta, Request

_PATIENCE_S = 300.0
_MAX_TOKENS = 256
_BEFORE_KILL = 40
"""Characters of an answer that have come when its target is killed."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Seconds from the start of a process."""

    plain_s: float
    """Until a target without work takes requests: the load of the model, and of all code."""
    resumed_s: float
    """Until a resumed request has its first new text."""

    @property
    def extra_s(self) -> float:
        """What it took beyond the load."""
        return self.resumed_s - self.plain_s


async def measure_restarts(
    count: int, *, ballast: int, target_cores: str, say: Callable[[str], None]
) -> list[Restart]:
    """Kill a target so many times at rest and so many times at work.

    Raises BrokerLost and RequestError.
    """
    with tempfile.TemporaryDirectory(prefix="edgecosine-") as folder:
        async with EmbeddedBroker(port=free_port()) as broker:
            cluster = f"restarts-{secrets.token_hex(3)}"
            command = (
                sys.executable, "-m", "edgecosine", "node", "--role", "target", "--model",
                zoo.TARGET, "--node-id", "target", "--cluster", cluster, "--broker", broker.url,
                "--ballast", str(ballast), "--no-mdns", "--credentials", "none", "--cores",
                target_cores, "--state-dir", f"{folder}/state",
            )  # fmt: skip
            target = _Target(command, Path(folder) / "log")
            async with Client(broker.url, cluster, patience_s=_PATIENCE_S) as client:
                try:
                    return await _restart(target, client, count, say)
                finally:
                    await target.kill()
    raise AssertionError("the cluster was left without a result")


async def _restart(
    target: _Target, client: Client, count: int, say: Callable[[str], None]
) -> list[Restart]:
    await target.start()
    await _seen(client, is_online=True)
    found = []
    for number in range(count):
        await target.kill()
        await _seen(client, is_online=False)
        started = await target.start()
        await _seen(client, is_online=True)
        plain_s = time.perf_counter() - started
        found.append(Restart(plain_s, await _resumed_s(target, client)))
        say(
            f"target: restart {number + 1} of {count}, load {plain_s:.2f} s, "
            f"first new text after {found[-1].resumed_s:.2f} s"
        )
    return found


class _Target:
    """A process that is killed and started again."""

    def __init__(self, command: tuple[str, ...], log: Path) -> None:
        self._command, self._log = command, log
        self._process: Process | None = None

    async def start(self) -> float:
        """The moment at which it started."""
        started = time.perf_counter()
        self._process = await processes.spawn(self._command, self._log)
        return started

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


async def _seen(client: Client, *, is_online: bool) -> None:
    while await client.is_online() != is_online:
        await client.changed()


async def _resumed_s(target: _Target, client: Client) -> float:
    """From the start of a process until an answer that it goes on with has new text."""
    async with contextlib.aclosing(_texts(client)) as lengths:
        async for length in lengths:
            if length >= _BEFORE_KILL:
                break
        await target.kill()
        started = await target.start()
        async for more in lengths:
            if more > length:
                resumed_s = time.perf_counter() - started
                break
        else:
            raise LabError("the answer had ended before its target was killed")
        async for _ in lengths:
            pass
    return resumed_s


async def _texts(client: Client) -> AsyncGenerator[int, None]:
    """How many characters of an answer have come, whenever there are more."""
    prompt = next(iter(zoo.prompts().values()))[0]
    request = Request(
        "", secrets.token_hex(8), "completion", prompt, max_tokens=_MAX_TOKENS, ignore_eos=True,
        stream=True,
    )  # fmt: skip
    length = 0
    async with contextlib.aclosing(client.ask(request)) as steps:
        async for step in steps:
            if isinstance(step, Delta):
                length += len(step.text)
                yield length
