"""Loads the engine that a node's settings name, on the processors that they name."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TypeVar

from edgecosine.config import NodeConfig
from edgecosine.engine.base import DraftEngine, MemberEngine
from edgecosine.engine.draft.prompt_lookup import load_ngram
from edgecosine.engine.options import Loaded
from edgecosine.models import NGRAM

Result = TypeVar("Result")


def load_target(config: NodeConfig) -> tuple[MemberEngine, Loaded]:
    """Return the engine of a target or member. Runs in the engine's thread."""
    from edgecosine.engine.loading import load as loading  # importing torch takes seconds

    return _settled(loading.load_target(config.engine), config)


def load_coordinator(config: NodeConfig) -> Loaded:
    """Return the description of the model whose tokenizer a coordinator without weights uses."""
    from edgecosine.engine.loading.load_codec import load_codec  # imports torch, as above

    return _settled(load_codec(config.engine), config)


def load_drafter(config: NodeConfig) -> tuple[DraftEngine, Loaded]:
    """Return the draft engine of the settings. Runs in the engine's thread."""
    if config.engine.model == NGRAM:
        return _settled(load_ngram(), config)
    from edgecosine.engine.loading import load as loading

    return _settled(loading.load_drafter(config.engine), config)


def _settled(loaded: Result, config: NodeConfig) -> Result:
    """Pin all threads of the process to the node's cores, after loading, which may use all, and
    exempt what was loaded from garbage collections, which else stall a node for a tenth of a
    second."""
    gc.unfreeze()  # a former engine of this process, which nothing else would free
    gc.collect()
    gc.freeze()
    if config.cores:
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), config.cores)
    return loaded
