"""The command line of a node that `slowed_node` runs; importing that one takes seconds."""

from __future__ import annotations

from collections.abc import Sequence


def slowed(command: Sequence[str], least_s: float) -> tuple[str, ...]:
    """A node's command line with a slowed engine; unchanged where `least_s` is 0."""
    if not least_s:
        return tuple(command)
    python, option, _, *rest = command
    return (python, option, "edgecosine.lab.slowed_node", str(least_s), *rest)
