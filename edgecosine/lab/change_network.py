"""Changes the network conditions of a running lab from another process of the same user.

Each lab listens on a Unix socket in a directory that only its user may enter. A request is one line
of JSON, and so is its reply: each drafter's conditions, or an error.
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


class ChangeRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A change for some drafters, by node id; for all when none are named."""

    drafters: tuple[str, ...] = ()
    conditions: NetworkConditions | None = None
    is_cut: bool | None = None


@asynccontextmanager
async def listening(cluster: LabCluster) -> AsyncIterator[Path]:
    """Accept requests during the block; yields the socket's path."""
    path = _directory() / f"{cluster.name}.sock"
    async with asyncio.TaskGroup() as group:

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            group.create_task(_serve(cluster, reader, writer), name="lab.change")

        server = await asyncio.start_unix_server(accept, path, limit=MAX_LINE_BYTES)
        try:
            yield path
        finally:
            server.close()
            path.unlink(missing_ok=True)


def request_change(path: Path, change: ChangeRequest) -> dict[str, str]:
    """Send a change to a lab; returns each drafter's conditions afterwards.

    Raises LabError when the change is impossible or the lab does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(_PATIENCE_S)
        try:
            line.connect(str(path))
            line.sendall(msgspec.json.encode(change) + b"\n")
            with line.makefile("rb") as answers:
                answer: dict[str, Any] = msgspec.json.decode(answers.readline(MAX_LINE_BYTES))
        except (OSError, msgspec.DecodeError) as error:
            raise LabError(f"the lab at {path} does not answer: {error}") from error
    if "error" in answer:
        raise LabError(str(answer["error"]))
    drafters: dict[str, str] = answer["drafters"]
    return drafters


def running_labs() -> dict[str, Path]:
    """The sockets of this user's labs, by cluster. Sockets of killed labs are removed."""
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
    with contextlib.suppress(OSError, ValueError):  # the peer has gone, or sent too much
        line = await reader.readline()
        if line:
            writer.write(msgspec.json.encode(await _answer(cluster, line)) + b"\n")
            await writer.drain()
    writer.close()


async def _answer(cluster: LabCluster, line: bytes) -> dict[str, Any]:
    try:
        change = msgspec.json.decode(line, type=ChangeRequest)
        if change.conditions is not None:
            await cluster.set_conditions(change.conditions, change.drafters)
        if change.is_cut is not None:
            await cluster.set_cut(change.drafters, is_cut=change.is_cut)
    except (msgspec.MsgspecError, EdgecosineError) as error:
        return {"error": str(error)}
    network = cluster.network
    return {"drafters": {name: network.describe(cluster.hosts[name]) for name in cluster.drafters}}


def _directory() -> Path:
    """The sockets' directory, for this user only.

    Raises LabError when it belongs to another user.
    """
    path = Path(tempfile.gettempdir()) / f"edgecosine-lab-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        raise LabError(f"{path} belongs to another user: remove it or set TMPDIR")
    return path
