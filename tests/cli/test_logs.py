"""Each log record is one line."""

from __future__ import annotations

import logging

import pytest

from edgecosine.cli.logs import FORMAT, LineFormatter


@pytest.mark.parametrize(("name", "is_one_line"), [("zeroconf", True), ("edgecosine.node", False)])
def test_traceback_of_a_library_is_left_out(name: str, *, is_one_line: bool) -> None:
    error = OSError("Network is unreachable")
    message, exc_info = f"socket 7: {error}", (OSError, error, None)
    record = logging.LogRecord(name, logging.WARNING, "f", 1, message, (), exc_info)
    lines = LineFormatter(FORMAT).format(record).split("\n")
    assert lines[0].endswith("socket 7: Network is unreachable")
    assert (len(lines) == 1) == is_one_line
