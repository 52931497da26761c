"""A node's engine, loaded as its settings say, on the processors that they name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from edgecosine.config import NodeConfig
from edgecosine.engine.base import DraftEngine, TargetEngine
from edgecosine.engine.draft.prompt_lookup import load_ngram
from edgecosine.engine.loading.model_files import NGRAM
from edgecosine.engine.loading.options import Loaded

Result = TypeVar("Result")


def load_target(config: NodeConfig) -> tuple[TargetEngine, Loaded]:
    """The target engine that the settings name; in the engine's thread."""
    from edgecosine.engine.loading import load as loading  # imports torch, which takes seconds

    return _pinned(loading.load_target(config.engine), config)


def load_drafter(config: NodeConfig) -> tuple[DraftEngine, Loaded]:
    """The draft engine that the settings name; in the engine's thread."""
    if config.engine.model == NGRAM:
        return _pinned(load_ngram(), config)
    from edgecosine.engine.loading import load as loading

    return _pinned(loading.load_drafter(config.engine), config)


def _pinned(loaded: Result, config: NodeConfig) -> Result:
    """Keep all threads of the process on the node's cores, now that loading is over."""
    if config.cores:
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), config.cores)
    return loaded
