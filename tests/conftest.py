"""What holds for all tests."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
"""No test asks the hub, also none that names a model in vain; read when its client is imported."""


@pytest.fixture(autouse=True, scope="session")
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nodes keep their state in a place of their own, also those that are processes."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state", numbered=True))


@pytest.fixture(autouse=True, scope="session")
def _hears_interrupts() -> None:
    """Shells start what they put in the background deaf to Ctrl-C, and children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def level_of_the_log() -> Iterator[None]:
    """A command that a test runs in this process sets a level for the tests after it, too."""
    log = logging.getLogger("edgecosine")
    level = log.level
    yield
    log.setLevel(level)
