"""Drafters that start quickly, because they are forked from a process that has all code loaded.

Each is a process of its own all the same, and may be killed as such.
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


class Nursery:
    """`with Nursery(directory) as nursery`: all that lives at the end is killed."""

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
        """Node ids, the oldest first."""
        return tuple(self._alive)

    def start(self, config: NodeConfig) -> None:
        """Start a node; its words go to a file of its name."""
        log = self._directory / f"{config.node_id}.log"
        process = self._context.Process(target=_be, args=(config, log), daemon=True)
        process.start()
        self._alive[config.node_id] = process

    def kill(self, node_id: str) -> None:
        """SIGKILL."""
        process = self._alive.pop(node_id)
        process.kill()
        process.join()


def _be(config: NodeConfig, log: Path) -> None:
    with log.open("ab") as out:
        os.dup2(out.fileno(), sys.stdout.fileno())
        os.dup2(out.fileno(), sys.stderr.fileno())
    uvloop.run(run_node(config))
