"""Changes the weather of a lab that runs, from another process of the same user.

Each lab listens on a Unix socket in a directory that nobody else may enter. A wish is one line of
JSON, and so is its answer: each drafter's weather, or what is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from edgecosine.errors import EdgecosineError, LabError
from edgecosine.lab.cluster import LabCluster
from edgecosine.lab.network.conditions import NetworkConditions

MAX_LINE_BYTES = 1 << 16
_PATIENCE_S = 10.0


class Wish(msgspec.Struct, frozen=True, omit_defaults=True):
    """What shall change for some drafters, by node id; for all when none are named."""

    drafters: tuple[str, ...] = ()
    weather: NetworkConditions | None = None
    is_cut: bool | None = None


@asynccontextmanager
async def listening(cluster: LabCluster) -> AsyncIterator[Path]:
    """Take wishes for as long as the block lasts; gives the socket's path."""
    path = _directory() / f"{cluster.name}.sock"
    async with asyncio.TaskGroup() as group:

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            group.create_task(_serve(cluster, reader, writer), name="lab.wish")

        server = await asyncio.start_unix_server(accept, path, limit=MAX_LINE_BYTES)
        try:
            yield path
        finally:
            server.close()
            path.unlink(missing_ok=True)


def wish_of(path: Path, wish: Wish) -> dict[str, str]:
    """Tell a lab what is wished; each drafter's weather then.

    Raises LabError when it cannot be, or when no lab is there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(_PATIENCE_S)
        try:
            line.connect(str(path))
            line.sendall(msgspec.json.encode(wish) + b"\n")
            with line.makefile("rb") as answers:
                answer: dict[str, Any] = msgspec.json.decode(answers.readline(MAX_LINE_BYTES))
        except (OSError, msgspec.DecodeError) as error:
            raise LabError(f"the lab at {path} does not answer: {error}") from error
    if "error" in answer:
        raise LabError(str(answer["error"]))
    drafters: dict[str, str] = answer["drafters"]
    return drafters


def running_labs() -> dict[str, Path]:
    """The sockets of labs of this user, by cluster. A killed lab's socket is removed on the way."""
    labs = {}
    for path in sorted(_directory().glob("*.sock")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
                labs[path.stem] = path
            except OSError:
                path.unlink(missing_ok=True)
    return labs


async def _serve(
    cluster: LabCluster, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    with contextlib.suppress(OSError, ValueError):  # whoever asked has gone, or sent too much
        line = await reader.readline()
        if line:
            writer.write(msgspec.json.encode(await _answer(cluster, line)) + b"\n")
            await writer.drain()
    writer.close()


async def _answer(cluster: LabCluster, line: bytes) -> dict[str, Any]:
    try:
        wish = msgspec.json.decode(line, type=Wish)
        if wish.weather is not None:
            await cluster.set_weather(wish.weather, wish.drafters)
        if wish.is_cut is not None:
            await cluster.set_cut(wish.drafters, is_cut=wish.is_cut)
    except (msgspec.MsgspecError, EdgecosineError) as error:
        return {"error": str(error)}
    network = cluster.network
    return {"drafters": {name: network.describe(cluster.hosts[name]) for name in cluster.drafters}}


def _directory() -> Path:
    """Of this user alone.

    Raises LabError when somebody else has made it.
    """
    path = Path(tempfile.gettempdir()) / f"edgecosine-lab-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        raise LabError(f"{path} belongs to somebody else: remove it or set TMPDIR")
    return path
