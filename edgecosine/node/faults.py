"""How a request ends, or is refused, through no word of the target."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

from edgecosine.errors import NoLogits, RequestError, root_of

logger = logging.getLogger(__name__)

JOURNAL_RETRY_S = 5.0
_DRAIN_RETRY_S = 5.0
_UNAVAILABLE_RETRY_S = 10.0
_MAX_WORDS = 300

CANCELLED = RequestError("the request was cancelled", code="cancelled", status=499)
EXPIRED = RequestError("the request's deadline has passed", code="deadline_exceeded", status=408)
INTERNAL = RequestError("the cluster failed at this request", code="internal_error", status=500)
LEAVING = RequestError("the cluster is shutting down", code="shutting_down", status=503)
DRAINING = RequestError(
    "the cluster takes no more requests, for it is restarting",
    code="draining",
    status=503,
    retry_after_s=_DRAIN_RETRY_S,
)
TOO_LONG = RequestError("the answer is too long for MQTT", code="answer_too_large", status=500)
NOT_TAKEN = RequestError(
    "the broker does not take the answer, which may be too long for it",
    code="answer_too_large",
    status=500,
)


def fault_of(error: BaseException) -> RequestError:
    """What the asker is told where something failed that nobody foresaw."""
    if isinstance(root_of(error), NoLogits):
        return RequestError(str(root_of(error)), code=INTERNAL.code, status=INTERNAL.status)
    return RequestError(INTERNAL.message, code=INTERNAL.code, status=INTERNAL.status)


def cause_of(error: BaseException) -> str:
    """What was raised and where, on one line; not as its repr, which may quote somebody's text."""
    cause = root_of(error)
    words = " ".join(f"{type(cause).__name__}: {cause}".split())[:_MAX_WORDS]
    frames = traceback.extract_tb(cause.__traceback__)
    return f"{words} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else words


def log_failure(key: str, error: BaseException) -> None:
    """Say in one line why a request failed; where all is told, with the way there."""
    trace = root_of(error) if logger.isEnabledFor(logging.DEBUG) else None
    logger.error("request failed: request=%s cause=%s", key, cause_of(error), exc_info=trace)


def unavailable(reason: str) -> RequestError:
    """Nobody is let in for this reason."""
    return RequestError(
        f"the target cannot answer now: {reason}",
        code="unavailable",
        status=503,
        retry_after_s=_UNAVAILABLE_RETRY_S,
    )
