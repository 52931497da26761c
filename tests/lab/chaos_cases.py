"""Histories of requests as an observer would record them, for tests of the checker."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from edgecosine.lab.chaos.checker import ReceivedMessage, RequestHistory
from edgecosine.protocol.api.answers import StreamPart

TEXTS = ("one two three", "eins zwei")


def final(*texts: str, created: int = 1) -> bytes:
    """A final message with these choices."""
    choices = [{"index": i, "finish_reason": "length", "text": t} for i, t in enumerate(texts)]
    return json.dumps({"id": "a", "created": created, "choices": choices}).encode()


def error(code: str, **more: Any) -> bytes:
    """A final message that is an error."""
    fault = {"message": code, "type": "server_error", "code": code, "status": 503, **more}
    return json.dumps({"id": "a", "error": fault}).encode()


def good_history(*texts: str) -> RequestHistory:
    """A request that was answered once, as it should be."""
    texts = texts or TEXTS
    payload = final(*texts)
    return RequestHistory(
        expected=texts,
        sent_s=[1.0],
        received=[ReceivedMessage(2.0, payload)],
        stream_parts=[
            StreamPart(0, texts[0][:4], is_last=False),
            StreamPart(4, texts[0][4:], is_last=False),
        ],
        answer=json.loads(payload),
        streamed=dict(enumerate(texts)),
        is_over=True,
    )


def changed(**fields: Any) -> RequestHistory:
    """The good history with other values of these fields."""
    return replace(good_history(), **fields)
