"""Values in a node's state are shown, whatever their type."""

from __future__ import annotations

from typing import Any

import pytest

from edgecosine.cli.status import _cell


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.25, "1.2"), (None, "-"), ("soon", "soon"), ([1], "[1]"), ({"a": 1}, "{'a': 1}")],
)
def test_unexpected_values_are_shown_unformatted(value: Any, shown: str) -> None:
    assert _cell({"rtt_ms": value}, "rtt_ms", "{:.1f}") == shown
