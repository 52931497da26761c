"""Checks a chaos run: which requests were lost, doubled, different or hung.

The checks are pure functions of what the clients and an observer received; `DEFINITIONS` explains
the terms.

MQTT delivers at least once. A gateway that reconnects repeats a final that the broker may not have
received, and answers a redelivered request again; a broker redelivers messages to an observer that
reconnects; a request that is sent again is answered again. Finals that are repeated byte for byte
for such a reason count as `repeated_finals` and are no fault. Refusals with a time to retry are not
finals.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from edgecosine.errors import RequestError
from edgecosine.protocol.api.answers import StreamPart, parse_final

DEFINITIONS: Final[Mapping[str, str]] = {
    "lost": "ended without a final message: none was observed, or its client received none",
    "doubled": "has two final messages that differ in a byte, so it ran twice, or a repeated one "
    "without a reason: it was not sent again, and neither gateway nor observer reconnected "
    "between the two; a connection explains two, the final and the request delivered again",
    "different": "its text, a part of its stream or the answer its client received differs from "
    "the fault-free text, or it ended with an error other than a requested cancellation",
    "hung": "its client still waited two minutes after the last fault was over",
    "repeated_finals": "finals repeated byte for byte, over a new connection or for a request that "
    "was sent again; the repetition of all requests at the end is not counted",
    "refusals": "answers with a time to retry: the request has not begun",
    "stream_gaps": "parts of streams that arrived after a missing one; parts are QoS 0",
}

Span = tuple[float, float]

_REPEATS_PER_CONNECTION: Final = 2
"""A final in flight, and a request that was not acknowledged."""


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message on the request's response topic."""

    at_s: float
    payload: bytes


@dataclass(slots=True)
class RequestHistory:
    """What the observer and the client recorded of one request. Texts are by choice.

    expected          the fault-free texts
    may_be_cancelled  its client cancels it
    sent_s            the times at which the observer received the request
    received          messages that the observer received on the response topic
    stream_parts      parts of the stream that the observer received
    answer            the final that its client received; None without one
    streamed          the text that its client received as a stream; None when it was not streamed
    failure           code of the error that its client received
    is_over           its client has stopped waiting
    """

    expected: tuple[str, ...]
    may_be_cancelled: bool = False
    sent_s: list[float] = field(default_factory=list)
    received: list[ReceivedMessage] = field(default_factory=list)
    stream_parts: list[StreamPart] = field(default_factory=list)
    answer: Mapping[str, Any] | None = None
    streamed: Mapping[int, str] | None = None
    failure: str | None = None
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The requests with each fault, and counts of other events."""

    requests: int
    faulty: Mapping[str, Mapping[str, str]]
    """By `lost`, `doubled`, `different`, `hung`: each request's name and the reason."""
    repeated_finals: int
    refusals: int
    cancelled: int
    stream_parts: int
    stream_gaps: int

    @property
    def is_clean(self) -> bool:
        """Whether no request has a fault."""
        return not any(self.faulty.values())


def check(
    histories: Mapping[str, RequestHistory],
    connections: Sequence[Span],
    repeated_s: float = math.inf,
) -> CheckResult:
    """Check all requests.

    `connections` are the spans in which the gateway or the observer reconnected to the broker; a
    message may be repeated in them. From `repeated_s` on, every request was sent once more. All
    times are in seconds since the run began.
    """
    faulty: dict[str, dict[str, str]] = {name: {} for name in (*_FAULTS, "hung")}
    for name, history in histories.items():
        if not history.is_over:
            faulty["hung"][name] = f"sent {len(history.sent_s)} times, no end"
            continue
        for kind, find in _FAULTS.items():
            reason = find(history, connections)
            if reason is not None:
                faulty[kind][name] = reason
    finals = [_finals(history) for history in histories.values()]
    return CheckResult(
        requests=len(histories),
        faulty=faulty,
        repeated_finals=sum(
            max(0, sum(received.at_s < repeated_s for received in each) - 1) for each in finals
        ),
        refusals=sum(len(s.received) for s in histories.values()) - sum(map(len, finals)),
        cancelled=sum(bool(each) and _code(each[0].payload) == "cancelled" for each in finals),
        stream_parts=sum(len(history.stream_parts) for history in histories.values()),
        stream_gaps=sum(map(_num_gaps, histories.values())),
    )


def is_refusal(payload: bytes) -> bool:
    """Whether the message gives a time to retry, so that the request has not begun."""
    try:
        parse_final(payload)
    except RequestError as error:
        return error.retry_after_s is not None
    except ValueError:
        return False
    return False


def _finals(history: RequestHistory) -> list[ReceivedMessage]:
    return [received for received in history.received if not is_refusal(received.payload)]


def _code(payload: bytes) -> str | None:
    try:
        parse_final(payload)
    except RequestError as error:
        return error.code
    except ValueError:
        return "unreadable"
    return None


def _lost(history: RequestHistory, _: Sequence[Span]) -> str | None:
    if not _finals(history):
        return "no final message was observed"
    is_answered = (
        history.answer is not None or history.failure is not None or history.may_be_cancelled
    )
    return None if is_answered else "its client received no final message"


def _doubled(history: RequestHistory, connections: Sequence[Span]) -> str | None:
    finals = _finals(history)
    payloads = {received.payload for received in finals}
    if len(payloads) > 1:
        return f"{len(payloads)} finals that differ in: {_difference(payloads)}"
    if finals and history.answer is not None and history.answer != _body(finals[0].payload):
        return "its client received a final that differs from the observed one"
    # An answer before the first observed request: one was sent while the observer was disconnected.
    num_unobserved = int(bool(finals) and all(at_s > finals[0].at_s for at_s in history.sent_s))
    num_unexplained = num_left = 0
    for before, received in itertools.pairwise(finals):
        if _is_repeated(before.at_s, received.at_s, connections):
            num_left = _REPEATS_PER_CONNECTION
        if num_left:
            num_left -= 1
            continue
        num_unexplained += 1
        # A request that is sent again is answered again, once for each time.
        num_sent = num_unobserved + sum(at_s <= received.at_s for at_s in history.sent_s)
        if num_unexplained >= max(1, num_sent):
            return (
                "its final was repeated without a reason: finals at "
                f"{_times(finals, received.at_s)}, "
                f"sent at {_shown(history.sent_s)}, connections at "
                f"{_shown(begun_s for begun_s, _ in connections if begun_s > finals[0].at_s)}"
            )
    return None


def _times(finals: Sequence[ReceivedMessage], until_s: float) -> str:
    return _shown(received.at_s for received in finals if received.at_s <= until_s)


def _shown(times_s: Iterable[float]) -> str:
    return ", ".join(f"{at_s:.3f}" for at_s in itertools.islice(times_s, 6)) + " s"


def _is_repeated(before_s: float, again_s: float, connections: Sequence[Span]) -> bool:
    return any(begun_s <= again_s and before_s <= ended_s for begun_s, ended_s in connections)


def _different(history: RequestHistory, _: Sequence[Span]) -> str | None:
    for received in _finals(history):
        fault = _wrong_final(history, received.payload)
        if fault is not None:
            return fault
    if history.failure is not None and not history.may_be_cancelled:
        return f"its client received the error {history.failure}"
    for part in history.stream_parts:
        fault = _wrong_part(history.expected, part)
        if fault is not None:
            return fault
    if history.streamed is not None:
        texts = tuple(history.streamed.get(number, "") for number in range(len(history.expected)))
        pairs = zip(texts, history.expected, strict=True)
        if history.may_be_cancelled:
            is_right = all(whole.startswith(part) for part, whole in pairs)
        else:
            is_right = texts == history.expected
        if not is_right:
            return f"its client received {texts!r}, not {history.expected!r}"
    return None


def _wrong_final(history: RequestHistory, payload: bytes) -> str | None:
    try:
        final = parse_final(payload)
    except RequestError as error:
        if history.may_be_cancelled and error.code == "cancelled":
            return None
        return f"it ended with the error {error.code}: {error.message}"
    except ValueError:
        return "its final message cannot be read"
    return None if final.texts == history.expected else f"{final.texts!r}, not {history.expected!r}"


def _wrong_part(expected: Sequence[str], part: StreamPart) -> str | None:
    if part.is_last:
        return None
    choice = part.choice or 0
    if choice < len(expected) and expected[choice].startswith(part.text, part.index):
        return None
    return f"a part of its stream does not match its text: {part}"


def _num_gaps(history: RequestHistory) -> int:
    lengths: dict[int, int] = {}
    num_gaps = 0
    for part in history.stream_parts:
        if part.is_last:
            continue
        choice = part.choice or 0
        known = lengths.get(choice, 0)
        num_gaps += part.index > known
        lengths[choice] = max(known, part.index + len(part.text))
    return num_gaps


def _body(payload: bytes) -> Any:
    try:
        return msgspec.json.decode(payload)
    except msgspec.DecodeError:
        return None


def _difference(payloads: set[bytes]) -> str:
    """Names of the fields in which finals differ."""
    bodies = [_body(payload) for payload in payloads]
    if not all(isinstance(body, dict) for body in bodies):
        return "unreadable"
    keys = sorted({key for body in bodies for key in body})
    return ", ".join(key for key in keys if any(b.get(key) != bodies[0].get(key) for b in bodies))


_FAULTS: Final[Mapping[str, Callable[[RequestHistory, Sequence[Span]], str | None]]] = {
    "lost": _lost,
    "doubled": _doubled,
    "different": _different,
}
