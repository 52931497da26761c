"""The embedded broker: Mosquitto when it is installed, else the pip-installed amqtt.

Either runs in a process of its own, which ends with this one whatever happens. It keeps nothing on
disk, listens on loopback unless told otherwise, and takes packets of 1 MiB at most.
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

logger = logging.getLogger(__name__)

BrokerKind = Literal["mosquitto", "amqtt"]

MAX_PACKET_BYTES = 1 << 20
MAX_QUEUED = 10_000
"""Messages of QoS 1 that one slow reader may leave waiting before they are dropped."""
_START_TIMEOUT_S = 15.0
_STOP_TIMEOUT_S = 3.0
_LOOK_AGAIN_S = 0.02
_LAST_WORDS_BYTES = 2000

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 -- looked up, not bound

_DIE_WITH_PARENT = """
import ctypes, os, pwd, signal, sys
if os.geteuid() == 0 and sys.argv[2] == "mosquitto":
    nobody = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(nobody.pw_gid)
    os.setuid(nobody.pw_uid)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[3], sys.argv[3:])
"""
"""PR_SET_PDEATHSIG survives exec, but no change of user, which Mosquitto makes when it is root; so
root's rights go first. The check covers a parent that was gone before.

argv: pid of the parent, kind of the broker, command.
"""


class EmbeddedBroker:
    """`async with EmbeddedBroker(port=1883) as broker`: a broker that accepts connections.

    Raises ConfigError when the address is taken or no broker is installed, and BrokerLost when the
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
        """Where nodes on this machine find it."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"mqtt://{_LOOPBACK.get(host, host)}:{self._port}"

    @property
    def pid(self) -> int:
        """Of the broker's process."""
        if self._process is None:
            raise RuntimeError("the broker has not been started")
        return self._process.pid

    async def __aenter__(self) -> Self:
        _check_free(self._host, self._port)
        directory = self._make_directory()
        try:
            settings, command = self._command(directory)
            with self._log_path.open("wb") as log, settings.open("rb") as given:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT),
                    *(str(os.getpid()), self.kind),
                    *command,
                    stdin=given,
                    stdout=log,
                    stderr=log,
                    # Ctrl-C is for us; the broker ends last, when all have said goodbye.
                    start_new_session=True,
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

        Raises what entering raises.
        """
        await self._stop()
        await self.__aenter__()

    async def wait(self) -> None:
        """Wait until the broker ends by itself, which it should not.

        Raises BrokerLost.
        """
        if self._process is None:
            raise RuntimeError("the broker has not been started")
        code = await self._process.wait()
        raise BrokerLost(f"the broker ended with code {code}: {self._last_words()}")

    def _make_directory(self) -> Path:
        directory = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="ecs-")))
        self._log_path = directory / "log"
        return directory

    def _command(self, directory: Path) -> tuple[Path, list[str]]:
        """The file with the broker's settings, and the command, which finds it on its standard
        input if it cannot reach it by its path."""
        path = directory / "settings"
        if self.kind == "amqtt":
            path.write_text(json.dumps(_amqtt_settings(self._host, self._port)))
            return path, [sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(path)]
        path.write_text(_mosquitto_settings(self._host, self._port))
        # Mosquitto does not read it as root, and opens what is open already once more.
        path.chmod(0o644)
        return path, [_mosquitto() or "mosquitto", "-c", "/dev/stdin"]

    async def _accepts(self) -> None:
        """Wait until the port accepts connections; the kernel has no event for that, so look."""
        try:
            async with asyncio.timeout(_START_TIMEOUT_S), asyncio.TaskGroup() as group:
                ending = group.create_task(self.wait(), name="broker.wait")
                while not await _can_connect(self._host, self._port):  # noqa: ASYNC110 -- no event
                    await asyncio.sleep(_LOOK_AGAIN_S)
                ending.cancel()
        except TimeoutError as error:
            raise BrokerLost(f"the broker does not accept connections: {self._last_words()}") from (
                error
            )
        except ExceptionGroup as group_error:
            raise BrokerLost(str(group_error.exceptions[0])) from group_error

    async def _stop(self) -> None:
        try:
            if self._process is not None and self._process.returncode is None:
                await _end(self._process)
        finally:
            self._cleanup.close()

    def _last_words(self) -> str:
        try:
            log = self._log_path.read_bytes()[-_LAST_WORDS_BYTES:]
        except OSError:
            return "it left no message"
        lines = log.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it left no message"


def installed_kind() -> BrokerKind:
    """Which broker can be started here.

    Raises ConfigError when there is none.
    """
    if _mosquitto() is not None:
        return "mosquitto"
    if importlib.util.find_spec("amqtt") is not None:
        return "amqtt"
    raise ConfigError("broker", "none installed", "apt install mosquitto, or pip install amqtt")


def _mosquitto() -> str | None:
    # Debian puts daemons where the PATH of ordinary users does not look.
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
            # As the brokers do, so that connections of a former life do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        is_taken = getattr(error, "errno", None) == errno.EADDRINUSE
        reason = "taken" if is_taken else getattr(error, "strerror", None) or str(error)
        raise (AddressTaken if is_taken else ConfigError)(
            "listen", f"{host}:{port}", f"a free address of this machine (this one: {reason})"
        ) from error


async def _can_connect(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, and SIGKILL when that is not heard."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
