"""Loading the engine of a node."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from edgecosine.config import NodeConfig
from edgecosine.engine.options import LoadOptions
from edgecosine.models import NGRAM
from edgecosine.node.runtime.load_engine import load_drafter


class Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_second_load_frees_what_the_first_one_exempted() -> None:
    config = NodeConfig("drafter", "d", LoadOptions(NGRAM))
    garbage = Cycle()
    is_alive = weakref.ref(garbage)
    load_drafter(config)
    del garbage
    gc.collect()
    assert is_alive() is not None
    load_drafter(config)
    assert is_alive() is None
