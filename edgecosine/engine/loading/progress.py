"""Shows the progress of a load: progress bars on a terminal, log lines elsewhere.

transformers and huggingface_hub draw tqdm bars, one for each downloaded file and one for the
weights. Downloads take the class of the bar as an argument, the weights take it from a hook.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm
from transformers.utils import logging as transformers_logging

logger = logging.getLogger(__name__)

PERIOD_S = 5.0
"""Time between two lines; shorter loads log none."""


class LoggedProgress(tqdm):  # type: ignore[misc]
    """A progress bar that logs lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        quiet = {"mininterval": PERIOD_S, "delay": PERIOD_S, "disable": False}
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            super().__init__(*args, **(kwargs | quiet | {"file": nowhere}))

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Log the progress."""
        share = f"{self.n / self.total:.0%}" if self.total else str(self.n)
        what = (self.desc or "loading").removesuffix(": ").rpartition("/")[2]
        logger.info("progress: of=%s done=%s", what, share)
        return True


def log_lines_once() -> None:
    """Make transformers log errors alone, and huggingface_hub by this process's handlers alone.

    A handler of its own would repeat each line.
    """
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.getLogger("huggingface_hub").handlers.clear()


def download_bar() -> type[LoggedProgress] | None:
    """The class of bars for downloads; None for the library's own."""
    return None if sys.stderr.isatty() else LoggedProgress


@contextmanager
def showing_progress(name: str) -> Iterator[None]:
    """Context in which the progress of loading the model `name` is shown."""
    hook: Callable[[Any], Any] = getattr(transformers_logging, "set_tqdm_hook", lambda _: None)
    if sys.stderr.isatty():
        transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        logger.info("loading: model=%s", name)
        yield
        return
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    before = hook(lambda _factory, args, kwargs: LoggedProgress(*args, **kwargs))
    try:
        yield
    finally:
        hook(before)
