"""A Mosquitto that keeps sessions on disk and is restarted whenever it ends."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

from edgecosine.errors import LabError
from edgecosine.lab.network.hosts import Host
from edgecosine.local.embedded_broker import find_mosquitto

logger = logging.getLogger(__name__)

_RESTART_S: Final = 0.3
_SETTINGS: Final = """\
listener {port} {host}
allow_anonymous true
user root
persistence true
persistence_location {directory}/
autosave_interval 60
persistent_client_expiration 1d
max_packet_size 1048576
max_queued_messages 10000
set_tcp_nodelay true
log_dest stderr
log_type error
log_type warning
"""
"""As written by `edgecosine cluster broker-config`, without access control. `user` applies when
root starts Mosquitto, which then keeps access to its files."""


class RestartingBroker:
    """One broker on one host: call `start`, then run `keep` as a task."""

    def __init__(self, directory: Path, cores: str, env: Mapping[str, str]) -> None:
        self._directory, self._cores, self._env = directory, cores, env
        self._host: Host | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._started = asyncio.Event()
        self.num_starts = 0

    def __repr__(self) -> str:
        return f"<RestartingBroker [{self.num_starts} starts]>"

    async def start(self, host: Host, port: int) -> None:
        """Start the broker for the first time.

        Raises LabError.
        """
        if find_mosquitto() is None:
            raise LabError("chaos needs Mosquitto: apt install mosquitto")
        settings = _SETTINGS.format(port=port, host=host.address, directory=self._directory)
        self._file.write_text(settings)
        self._host = host
        await self._start()

    async def keep(self) -> NoReturn:
        """Restart the broker whenever it ends, until cancelled."""
        while True:
            assert self._process is not None
            code = await self._process.wait()
            logger.info("broker ended: code=%d", code)
            await asyncio.sleep(_RESTART_S)
            await self._start()

    def signal(self, number: signal.Signals) -> bool:
        """Send the broker a signal; returns False when it is not running."""
        if self._process is None or self._process.returncode is not None:
            return False
        try:
            self._process.send_signal(number)
        except ProcessLookupError:
            return False
        return True

    async def restarted(self, num_starts: int) -> None:
        """Wait until the broker has been started more than `num_starts` times."""
        while self.num_starts <= num_starts:
            await self._started.wait()

    async def _start(self) -> None:
        assert self._host is not None
        command = (find_mosquitto() or "mosquitto", "-c", str(self._file))
        log = self._directory / "mosquitto.log"
        self._process = await self._host.start(command, log=log, cores=self._cores, env=self._env)
        self.num_starts += 1
        self._started.set()
        self._started = asyncio.Event()

    @property
    def _file(self) -> Path:
        return self._directory / "mosquitto.conf"
