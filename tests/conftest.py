"""What holds for all tests."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nodes keep their state in a place of their own, also those that are processes."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state", numbered=True))
