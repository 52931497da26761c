"""One line for whatever a stranger's code raises while a model is loaded.

transformers, tokenizers, bitsandbytes and torch raise nearly everything at a file that they do not
take, down to bare exceptions and Rust's panics.
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
"""Characters of a stranger's reason; some print a whole configuration."""


@contextmanager
def refusing(
    what: str, remedy: str = "", kind: type[EngineError] = ModelUnsupported
) -> Iterator[None]:
    """Context in which any error that is not ours becomes one of `kind`: `what`, the reason, and
    then `remedy`. Lack of memory becomes OutOfMemory."""
    try:
        yield
    except _OURS_TO_PASS_ON:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory(
            f"{what}: {reason_of(error)}; take a smaller model, quantise it, or lower --slots or "
            "--context"
        ) from error
    # A panic of Rust's, as of the tokenizers, is no Exception.
    except BaseException as error:
        logger.debug("a stranger's code failed: at=%s", what, exc_info=True)
        raise kind(f"{what}: {reason_of(error)}{remedy}") from error


def reason_of(error: BaseException) -> str:
    """The first line of an error, with its kind where it says little by itself."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if not isinstance(error, OSError | ValueError | RuntimeError) or not line:
        line = f"{type(error).__name__}: {line}".removesuffix(": ")
    return line if len(line) <= _MOST else f"{line[:_MOST]}…"
