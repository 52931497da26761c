"""Converts the errors of third-party code during a load to errors of one line.

transformers, tokenizers, bitsandbytes and torch raise errors of any type for files that they cannot
read, including plain exceptions and panics of Rust code.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edgecosine.errors import EdgecosineError, EngineError, ModelUnsupported, OutOfMemory

logger = logging.getLogger(__name__)

_OURS_TO_PASS_ON = (EdgecosineError, KeyboardInterrupt, SystemExit, GeneratorExit)
_MOST = 300
"""Most characters of a reason; some libraries print a whole configuration."""


@contextmanager
def refusing(
    what: str, remedy: str = "", kind: type[EngineError] = ModelUnsupported
) -> Iterator[None]:
    """Context that converts errors of other libraries to `kind`, with the message `what`, reason,
    `remedy`. Lack of memory becomes OutOfMemory."""
    try:
        yield
    except _OURS_TO_PASS_ON:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory(
            f"{what}: {reason_of(error)}; use a smaller model, quantise it, or lower --slots or "
            "--context"
        ) from error
    # A panic of Rust code, as in tokenizers, is not an Exception.
    except BaseException as error:
        logger.debug("third-party code failed: at=%s", what, exc_info=True)
        raise kind(f"{what}: {reason_of(error)}{remedy}") from error


def reason_of(error: BaseException) -> str:
    """The first line of an error, with its type where the message alone is unclear."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if not isinstance(error, OSError | ValueError | RuntimeError) or not line:
        line = f"{type(error).__name__}: {line}".removesuffix(": ")
    return line if len(line) <= _MOST else f"{line[:_MOST]}…"
