"""Logging to standard error, one line per event."""

from __future__ import annotations

import logging


def log_to_stderr(level: str) -> None:
    """Log from `level` on; libraries from warnings on."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)-7s %(name)s %(message)s", level=logging.WARNING
    )
    logging.getLogger("edgecosine").setLevel(level.upper())
