"""Refusals and errors that come from the cluster and not from the model; log lines of failures."""

from __future__ import annotations

import logging
import traceback
from dataclasses import replace
from pathlib import Path

from edgecosine.errors import NoLogits, Refusal, root_of

logger = logging.getLogger(__name__)

JOURNAL_RETRY_S = 5.0
_DRAIN_RETRY_S = 5.0
_UNAVAILABLE_RETRY_S = 10.0
_MAX_CHARS = 300

CANCELLED = Refusal("the request was cancelled", code="cancelled", status=499)
EXPIRED = Refusal("the request's deadline has passed", code="deadline_exceeded", status=408)
INTERNAL = Refusal(
    "serving this request failed; the log of the target has the cause",
    code="internal_error",
    status=500,
)
LEAVING = Refusal("the cluster is shutting down", code="shutting_down", status=503)
DRAINING = Refusal(
    "the cluster takes no more requests because it is restarting",
    code="draining",
    status=503,
    retry_after_s=_DRAIN_RETRY_S,
)
INBOX_FULL = Refusal(
    "more requests wait than can be read; try again in 1.0 s",
    code="overloaded",
    status=503,
    retry_after_s=1.0,
)
DUPLICATE = Refusal(
    "this id was used for another request; ids name one request each",
    code="duplicate_id",
    parameter="id",
    status=409,
)
TOO_LONG = Refusal("the answer is too long for MQTT", code="answer_too_large", status=500)
NOT_TAKEN = Refusal(
    "the broker does not take the answer, which may be too long for it",
    code="answer_too_large",
    status=500,
)


def fault_of(error: BaseException) -> Refusal:
    """Return the error that the client gets for an unexpected exception."""
    cause = root_of(error)
    return replace(INTERNAL, message=str(cause)) if isinstance(cause, NoLogits) else INTERNAL


def cause_of(error: BaseException) -> str:
    """Return an exception and its place on one line, without its repr, which may quote a prompt."""
    cause = root_of(error)
    words = " ".join(f"{type(cause).__name__}: {cause}".split())[:_MAX_CHARS]
    frames = traceback.extract_tb(cause.__traceback__)
    return f"{words} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else words


def log_failure(key: str, error: BaseException) -> None:
    """Log why a request failed, on one line; at level DEBUG with the traceback."""
    trace = root_of(error) if logger.isEnabledFor(logging.DEBUG) else None
    logger.error("request failed: request=%s cause=%s", key, cause_of(error), exc_info=trace)


def unavailable(reason: str) -> Refusal:
    """Return the refusal of all requests for this reason."""
    return Refusal(
        f"the target cannot answer now: {reason}",
        code="unavailable",
        status=503,
        retry_after_s=_UNAVAILABLE_RETRY_S,
    )
