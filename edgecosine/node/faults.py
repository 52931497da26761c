"""How a request ends, or is refused, through no word of the target."""

from __future__ import annotations

from edgecosine.errors import Refusal

JOURNAL_RETRY_S = 5.0
_DRAIN_RETRY_S = 5.0
_UNAVAILABLE_RETRY_S = 10.0

CANCELLED = Refusal("the request was cancelled", code="cancelled", status=499)
EXPIRED = Refusal("the request's deadline has passed", code="deadline_exceeded", status=408)
INTERNAL = Refusal("the cluster failed at this request", code="internal_error", status=500)
LEAVING = Refusal("the cluster is shutting down", code="shutting_down", status=503)
DRAINING = Refusal(
    "the cluster takes no more requests, for it is restarting",
    code="draining",
    status=503,
    retry_after_s=_DRAIN_RETRY_S,
)
CROWDED = Refusal(
    "more requests wait than can be read; try again in 1.0 s",
    code="overloaded",
    status=503,
    retry_after_s=1.0,
)
TOO_LONG = Refusal("the answer is too long for MQTT", code="answer_too_large", status=500)


def unavailable(reason: str) -> Refusal:
    """Nobody is let in for this reason."""
    return Refusal(
        f"the target cannot answer now: {reason}",
        code="unavailable",
        status=503,
        retry_after_s=_UNAVAILABLE_RETRY_S,
    )
