"""A real Mosquitto with settings of a test's own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path

from tests.support.mqtt import PATIENCE_S, free_port


@contextlib.asynccontextmanager
async def own_mosquitto(directory: Path, *settings: str) -> AsyncIterator[str]:
    """The URL of a broker that runs inside the block."""
    port = free_port()
    file = directory / f"mosquitto-{port}.conf"
    lines = (f"listener {port} 127.0.0.1", "allow_anonymous true", "user root", *settings)
    file.write_text("\n".join(lines) + "\n")
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin") or "mosquitto"
    process = await asyncio.create_subprocess_exec(
        program, "-c", str(file), stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            while b" running" not in (line := await process.stderr.readline()):
                assert line, "the broker ended"
        yield f"mqtt://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.communicate()
