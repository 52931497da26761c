"""Processes that a test kills and starts again, as a service manager would."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from edgecosine.local import child_processes
from tests.support import forked_nodes
from tests.support.mqtt import free_port


class KillableProcess:
    """A command that can be started, stopped and killed any number of times."""

    _spawn = staticmethod(child_processes.spawn)

    def __init__(self, command: tuple[str, ...], log: Path) -> None:
        self._command, self.log = command, log
        self._process: asyncio.subprocess.Process | forked_nodes.ForkedProcess | None = None

    @property
    def process(self) -> asyncio.subprocess.Process | forked_nodes.ForkedProcess:
        """The process that was started last."""
        assert self._process is not None
        return self._process

    async def start(self) -> None:
        self._process = await self._spawn(self._command, self.log)

    async def stop(self) -> None:
        """SIGTERM."""
        await child_processes.stop(self.process)  # type: ignore[arg-type]

    async def kill(self) -> None:
        """SIGKILL; nothing where the process has ended."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


class KillableNode(KillableProcess):
    """A node with the options of `edgecosine node`."""

    _spawn = staticmethod(forked_nodes.spawn)

    def __init__(self, *options: str, log: Path) -> None:
        super().__init__((sys.executable, "-m", "edgecosine", "node", *options), log)


class KillableBroker(KillableProcess):
    """A Mosquitto that keeps sessions on disk."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        file = directory / "mosquitto.conf"
        file.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\n"
            f"persistence_location {directory}/\nautosave_interval 1\nautosave_on_changes true\n"
        )
        super().__init__(("/usr/sbin/mosquitto", "-c", str(file)), directory / "mosquitto.log")

    async def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        await super().start()
        while not await self._accepts():  # noqa: ASYNC110 -- there is no event for that
            await asyncio.sleep(0.02)

    async def _accepts(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True
