"""Logging to standard error, one line per event."""

from __future__ import annotations

import logging

FORMAT = "%(asctime)s %(levelname)-7s %(name)s %(message)s"


class LineFormatter(logging.Formatter):
    """Formats a record of a library without its traceback: the message has the error."""

    def format(self, record: logging.LogRecord) -> str:
        if not record.name.startswith("edgecosine"):
            record.exc_info = record.exc_text = None
        return super().format(record)


def log_to_stderr(level: str) -> None:
    """Log from `level` on; libraries from warnings on, with tracebacks only at level `debug`."""
    logging.basicConfig(format=FORMAT, level=logging.WARNING)
    if level.lower() != "debug":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(LineFormatter(FORMAT))
    logging.getLogger("edgecosine").setLevel(level.upper())
