"""The command line that runs a node by `slowed_node`. That module takes seconds to import, so this
one does not import it."""

from __future__ import annotations

from collections.abc import Sequence


def slowed(command: Sequence[str], least_s: float) -> tuple[str, ...]:
    """A node's command line with an engine slowed to `least_s` seconds; unchanged if it is 0."""
    if not least_s:
        return tuple(command)
    python, option, _, *rest = command
    return (python, option, "edgecosine.lab.slowed_node", str(least_s), *rest)
