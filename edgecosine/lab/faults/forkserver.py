"""Starts drafters quickly, by forking a process that has loaded all code.

Each drafter is a separate process and can be killed alone.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Self

import uvloop

from edgecosine.config import NodeConfig
from edgecosine.node.node import run_node

_PRELOADED = (__name__, "edgecosine.engine.loading.load", "edgecosine.engine.draft.drafter")


class DrafterForkServer:
    """Starts and kills drafters; leaving the context kills those that still run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*_PRELOADED])
        self._alive: dict[str, BaseProcess] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for node_id in [*self._alive]:
            self.kill(node_id)

    @property
    def alive(self) -> tuple[str, ...]:
        """Ids of the running nodes, the oldest first."""
        return tuple(self._alive)

    def start(self, config: NodeConfig) -> None:
        """Start a node; its output goes to a file named after it."""
        log = self._directory / f"{config.node_id}.log"
        process = self._context.Process(target=_run_drafter, args=(config, log), daemon=True)
        process.start()
        self._alive[config.node_id] = process

    def kill(self, node_id: str) -> None:
        """Send SIGKILL to a node and wait for its end."""
        process = self._alive.pop(node_id)
        process.kill()
        process.join()


def _run_drafter(config: NodeConfig, log: Path) -> None:
    with log.open("ab") as out:
        os.dup2(out.fileno(), sys.stdout.fileno())
        os.dup2(out.fileno(), sys.stderr.fileno())
    uvloop.run(run_node(config))
