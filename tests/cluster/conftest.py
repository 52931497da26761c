"""Fixtures of the tests that start whole clusters."""

from __future__ import annotations

import pytest

from tests.support.forked_nodes import start_server


@pytest.fixture(autouse=True, scope="session")
def _fork_server(_own_state: None) -> None:
    """The server that forks nodes has imported all code before the first test."""
    start_server()
