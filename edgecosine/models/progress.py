"""Progress of a fetch: a bar on a terminal, periodic log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

logger = logging.getLogger(__name__)

PERIOD_S: Final = 5.0
"""Period of log lines."""


@contextmanager
def showing_progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Context with a function that receives the number of finished bytes, of `total`."""
    if not sys.stderr.isatty():
        yield _logging(what, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=min(done, total))


def _logging(what: str, total: int) -> Callable[[int], None]:
    logger.info("progress: of=%s megabytes=%.0f", what, total / 1e6)
    reported_at = time.monotonic()

    def report(done: int) -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at >= PERIOD_S or done == total:
            reported_at = time.monotonic()
            logger.info("progress: of=%s done=%.0f%%", what, 100 * min(done / total, 1))

    return report
