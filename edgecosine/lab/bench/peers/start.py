"""Starts the peers. A peer that does not start is left out of the comparison."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import msgspec

from edgecosine.errors import LabError
from edgecosine.lab.bench.cells import ASSISTED
from edgecosine.lab.bench.peers import figures as names
from edgecosine.lab.bench.peers.environment import llamacpp_python
from edgecosine.lab.bench.peers.inputs import EIGHT, PeersRecord
from edgecosine.lab.bench.peers.messages import Kind, PeerReady, Setup
from edgecosine.lab.bench.peers.plain_checkpoint import PlainCheckpoint
from edgecosine.lab.bench.peers.server import PeerServer, Server, peer_process
from edgecosine.lab.figures import Notify

_IDLE_S: Final = 2.0
_LLAMACPP: Final = Path(__file__).with_name("llamacpp_worker.py")
_TRANSFORMERS: Final = (
    "env",
    "TQDM_DISABLE=1",
    sys.executable,
    "-m",
    "edgecosine.lab.bench.peers.transformers_worker",
)


class StartedPeers:
    """Starts the peers' processes and returns their servers; those that do not start are refused in
    `found`."""

    def __init__(
        self, stack: AsyncExitStack, setup: Setup, plain: PlainCheckpoint | None,
        decode: Callable[..., str], found: PeersRecord, notify: Notify,
    ) -> None:  # fmt: skip
        self._stack, self._setup, self._plain = stack, setup, plain
        self._decode, self._found, self._notify = decode, found, notify
        self.pids: dict[str, int] = {}

    async def llamacpp(self) -> dict[str, Server]:
        """llama.cpp: plain, with the generalist as draft model, and in a batch of eight."""
        servers: dict[str, dict[int, Kind]] = {
            names.LLAMACPP: {1: "plain", EIGHT: "batched"},
            names.LLAMACPP_DRAFTED: {1: "drafted"},
        }
        try:
            python = await asyncio.to_thread(llamacpp_python, self._notify)
        except LabError as error:
            for name in servers:
                self._found.refuse(name, str(error), self._notify)
            return {}
        drafter = None if self._plain is None else str(self._plain.gguf)
        return await self._start("llama.cpp", (str(python), str(_LLAMACPP)), drafter, servers)

    async def transformers(self) -> dict[str, Server]:
        """transformers: plain, and assisted by the generalist."""
        servers: dict[str, dict[int, Kind]] = {
            names.TRANSFORMERS: {1: "plain"}, ASSISTED: {1: "drafted"},
        }  # fmt: skip
        drafter = None if self._plain is None else str(self._plain.directory)
        return await self._start("transformers", _TRANSFORMERS, drafter, servers)

    async def _start(
        self, name: str, command: Sequence[str], drafter: str | None,
        servers: dict[str, dict[int, Kind]],
    ) -> dict[str, Server]:  # fmt: skip
        self._notify(f"finding the fastest settings of {name}")
        setup = msgspec.structs.replace(self._setup, drafter=drafter)
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        try:
            started = peer_process(name, command, setup, cores)
            process, ready = await self._stack.enter_async_context(started)
        except (LabError, OSError) as error:
            for server in servers:
                self._found.refuse(server, str(error), self._notify)
            return {}
        self.pids[name] = process.pid
        self._found.notes[name] = msgspec.to_builtins(ready)
        return {
            server: PeerServer(process, kinds, self._text)
            for server, kinds in servers.items()
            if self._is_supported(server, kinds, ready)
        }

    def _is_supported(self, server: str, kinds: dict[int, Kind], ready: PeerReady) -> bool:
        reasons = [
            f"{kind}: {reason}" for kind, reason in ready.refused.items() if kind in kinds.values()
        ]
        if reasons:
            self._found.refuse(server, "; ".join(reasons), self._notify)
        return not reasons

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self._decode(tokens, skip_special_tokens=True))


async def idle_shares(pids: dict[str, int]) -> dict[str, float]:
    """The share of a core that each idle peer uses, which reveals spinning threads."""
    before = {name: _cpu_s(pid) for name, pid in pids.items()}
    await asyncio.sleep(_IDLE_S)
    return {
        name: round((_cpu_s(pid) - before[name]) / _IDLE_S, 4) for name, pid in pids.items()
    }  # fmt: skip


def _cpu_s(pid: int) -> float:
    """Processor seconds of a process so far; 0 without /proc or when it has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0
