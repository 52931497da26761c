"""The embedded broker: Mosquitto if it is installed, else the pip-installed amqtt.

Either runs in a child process that ends with this one. It persists nothing, listens on loopback by
default, and accepts packets of at most 1 MiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from edgecosine.errors import AddressTaken, BrokerLost, ConfigError
from edgecosine.local import child_processes as processes

logger = logging.getLogger(__name__)

BrokerKind = Literal["mosquitto", "amqtt"]

MAX_PACKET_BYTES = 1 << 20
MAX_QUEUED = 10_000
"""QoS 1 messages queued for one slow client before further ones are dropped."""
_START_TIMEOUT_S = 15.0
_STOP_TIMEOUT_S = 3.0
_POLL_S = 0.02

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 -- looked up, not bound


class EmbeddedBroker:
    """`async with EmbeddedBroker(port=1883) as broker`: entered when it accepts connections.

    Raises ConfigError when the address is in use or no broker is installed, and BrokerLost when the
    broker does not start.
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 1883, kind: BrokerKind | None = None
    ) -> None:
        self._host = host
        self._port = port
        self.kind: BrokerKind = kind or installed_kind()
        self._process: asyncio.subprocess.Process | None = None
        self._cleanup = contextlib.ExitStack()
        self._log_path = Path()

    def __repr__(self) -> str:
        return f"<EmbeddedBroker {self.kind} {self.url}>"

    @property
    def url(self) -> str:
        """URL for clients on this machine."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"mqtt://{_LOOPBACK.get(host, host)}:{self._port}"

    @property
    def pid(self) -> int:
        """Process id of the broker."""
        if self._process is None:
            raise RuntimeError("the broker has not been started")
        return self._process.pid

    async def __aenter__(self) -> Self:
        _check_free(self._host, self._port)
        directory = self._make_directory()
        try:
            settings, command = self._command(directory)
            is_root = os.geteuid() == 0 and self.kind == "mosquitto"
            with settings.open("rb") as file:
                self._process = await processes.spawn(
                    command, self._log_path, stdin=file, user="nobody" if is_root else ""
                )
            await self._accepts()
        except BaseException:
            await self._stop()
            raise
        logger.info("broker started: kind=%s url=%s pid=%d", self.kind, self.url, self.pid)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    async def restart(self) -> None:
        """Start the broker again at the same address, after it ended.

        Raises ConfigError and BrokerLost, as at the first start.
        """
        await self._stop()
        await self.__aenter__()

    async def wait(self) -> None:
        """Wait until the broker ends by itself.

        Raises BrokerLost then.
        """
        if self._process is None:
            raise RuntimeError("the broker has not been started")
        code = await self._process.wait()
        lines = processes.last_log_lines(self._log_path)
        raise BrokerLost(f"the broker {processes.ending(code)}: {lines}")

    def _make_directory(self) -> Path:
        directory = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="ecs-")))
        self._log_path = directory / "log"
        return directory

    def _command(self, directory: Path) -> tuple[Path, list[str]]:
        """The settings file and the command; Mosquitto reads the file from its standard input."""
        path = directory / "settings"
        if self.kind == "amqtt":
            path.write_text(json.dumps(_amqtt_settings(self._host, self._port)))
            return path, [sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(path)]
        path.write_text(_mosquitto_settings(self._host, self._port))
        # Mosquitto does not read it as root: it opens /dev/stdin, and with it the file, again.
        path.chmod(0o644)
        return path, [find_mosquitto() or "mosquitto", "-c", "/dev/stdin"]

    async def _accepts(self) -> None:
        """Poll until the port accepts connections; the kernel has no event for that."""
        try:
            async with asyncio.timeout(_START_TIMEOUT_S), asyncio.TaskGroup() as group:
                ending = group.create_task(self.wait(), name="broker.wait")
                while not await _can_connect(self._host, self._port):  # noqa: ASYNC110 -- no event
                    await asyncio.sleep(_POLL_S)
                ending.cancel()
        except TimeoutError as error:
            lines = processes.last_log_lines(self._log_path)
            raise BrokerLost(f"the broker does not accept connections: {lines}") from error
        except ExceptionGroup as group_error:
            raise BrokerLost(str(group_error.exceptions[0])) from group_error

    async def _stop(self) -> None:
        try:
            if self._process is not None:
                await processes.stop(self._process, patience_s=_STOP_TIMEOUT_S)
        finally:
            self._cleanup.close()


def installed_kind() -> BrokerKind:
    """The installed broker; Mosquitto if both are.

    Raises ConfigError when neither is installed.
    """
    if find_mosquitto() is not None:
        return "mosquitto"
    if importlib.util.find_spec("amqtt") is not None:
        return "amqtt"
    raise ConfigError("broker", "none installed", "apt install mosquitto, or pip install amqtt")


def find_mosquitto() -> str | None:
    """Path of Mosquitto; None when it is not installed."""
    # Debian installs daemons outside the PATH of ordinary users.
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def _mosquitto_settings(host: str, port: int) -> str:
    return (
        f"listener {port} {host}\n"
        "allow_anonymous true\n"
        "persistence false\n"
        f"max_packet_size {MAX_PACKET_BYTES}\n"
        f"max_queued_messages {MAX_QUEUED}\n"
        "set_tcp_nodelay true\n"
        "sys_interval 0\n"
        "log_dest stderr\n"
        "log_type error\n"
        "log_type warning\n"
    )


def _amqtt_settings(host: str, port: int) -> dict[str, object]:
    bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return {
        "listeners": {"default": {"type": "tcp", "bind": bind}},
        "plugins": {
            "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True},
        },
    }


def _check_free(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the brokers do, so that connections in TIME_WAIT do not block the address.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        where = f"{host}:{port}"
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise AddressTaken("listen", where) from error
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError("listen", where, f"an address of this machine ({reason})") from error


async def _can_connect(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
