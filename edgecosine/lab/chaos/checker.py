"""The verdict on a chaos run: what was asked, what was heard, and what is wrong with it.

Pure, and told nothing but what the askers and a witness saw. `DEFINITIONS` has the words.

MQTT delivers at least once: a gateway that connects anew repeats a final that the broker may not
have, and answers a request again that the broker may deliver again; a broker delivers again to a
witness that is back; and who asks again is answered again. Finals that come again equal to the
byte, with such a reason, are `repeated_finals`, and no fault. Refusals that say when to come again
are no finals.
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
    "lost": "ended without a final message: none was heard, or its asker was left without one",
    "doubled": "has two final messages that differ in a byte, so it ran twice, or the same one "
    "again for no reason: nobody asked again, and neither gateway nor witness connected anew "
    "between the two; a connection is a reason for two, the final and the request delivered again",
    "different": "its text, a part of its stream or what its asker was given is not of the "
    "fault-free text, or it ended with an error that nobody had asked for",
    "hung": "its asker still waited two minutes after the last fault was over",
    "repeated_finals": "finals that came again, equal to the byte, over a new connection or to who "
    "asked again; the roll call in the end is not counted",
    "refusals": "answers that say when to come again: the request has not begun",
    "stream_gaps": "parts of streams that were heard behind a missing one; parts are QoS 0",
}

Span = tuple[float, float]

_REPEATS_PER_CONNECTION: Final = 2
"""A final that was on its way, and a request that was not acknowledged."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A message on the request's response topic."""

    at_s: float
    payload: bytes


@dataclass(slots=True)
class Story:
    """Everything that was seen of one request. Texts are by choice.

    expected        the fault-free texts
    may_be_cancelled  its asker gave it up
    asked_s         when somebody was heard to ask
    told            the final that its asker was given, None when it got none
    streamed        the text that its asker was given bit by bit; None when it was not streamed
    failure         the error that its asker was given
    is_over         its asker does not wait any more
    """

    expected: tuple[str, ...]
    may_be_cancelled: bool = False
    asked_s: list[float] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    pieces: list[StreamPart] = field(default_factory=list)
    told: Mapping[str, Any] | None = None
    streamed: Mapping[int, str] | None = None
    failure: str | None = None
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Names of the requests with each fault, and why; and counts of what is none.

    stream_gaps    parts of streams that came behind one that is missing: parts are QoS 0
    """

    requests: int
    faulty: Mapping[str, Mapping[str, str]]
    """By `lost`, `doubled`, `different`, `hung`: the request's name, and what was seen."""
    repeated_finals: int
    refusals: int
    cancelled: int
    stream_parts: int
    stream_gaps: int

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not any(self.faulty.values())


def judge(
    stories: Mapping[str, Story], connections: Sequence[Span], called_s: float = math.inf
) -> CheckResult:
    """What became of all requests.

    `connections` are the times at which the gateway or the witness connected to the broker anew:
    what may repeat a message. From `called_s` on everything was asked for once more.
    """
    faulty: dict[str, dict[str, str]] = {name: {} for name in (*_FAULTS, "hung")}
    for name, story in stories.items():
        if not story.is_over:
            faulty["hung"][name] = f"asked {len(story.asked_s)} times, no end"
            continue
        for kind, find in _FAULTS.items():
            reason = find(story, connections)
            if reason is not None:
                faulty[kind][name] = reason
    told = stories.values()
    finals = [_finals(story) for story in told]
    return CheckResult(
        requests=len(stories),
        faulty=faulty,
        repeated_finals=sum(
            max(0, sum(heard.at_s < called_s for heard in each) - 1) for each in finals
        ),
        refusals=sum(len(s.heard) for s in told) - sum(map(len, finals)),
        cancelled=sum(bool(each) and _code(each[0].payload) == "cancelled" for each in finals),
        stream_parts=sum(len(story.pieces) for story in told),
        stream_gaps=sum(map(_num_gaps, told)),
    )


def is_refusal(payload: bytes) -> bool:
    """Whether this says when to come again, so that the request has not begun."""
    try:
        parse_final(payload)
    except RequestError as error:
        return error.retry_after_s is not None
    except ValueError:
        return False
    return False


def _finals(story: Story) -> list[Heard]:
    return [heard for heard in story.heard if not is_refusal(heard.payload)]


def _code(payload: bytes) -> str | None:
    try:
        parse_final(payload)
    except RequestError as error:
        return error.code
    except ValueError:
        return "unreadable"
    return None


def _lost(story: Story, _: Sequence[Span]) -> str | None:
    if not _finals(story):
        return "no final message was heard"
    is_answered = story.told is not None or story.failure is not None or story.may_be_cancelled
    return None if is_answered else "its asker was given no final message"


def _doubled(story: Story, connections: Sequence[Span]) -> str | None:
    finals = _finals(story)
    payloads = {heard.payload for heard in finals}
    if len(payloads) > 1:
        return f"{len(payloads)} different finals: {_difference(payloads)}"
    if finals and story.told is not None and story.told != _body(finals[0].payload):
        return "its asker was given another final than was heard"
    # An answer to a question that was not heard: it was put while the witness was away.
    num_unheard = int(bool(finals) and all(at_s > finals[0].at_s for at_s in story.asked_s))
    num_unexplained = num_left = 0
    for before, heard in itertools.pairwise(finals):
        if _is_repeated(before.at_s, heard.at_s, connections):
            num_left = _REPEATS_PER_CONNECTION
        if num_left:
            num_left -= 1
            continue
        num_unexplained += 1
        # Who asks again is answered again, once for each time.
        num_asked = num_unheard + sum(at_s <= heard.at_s for at_s in story.asked_s)
        if num_unexplained >= max(1, num_asked):
            return (
                f"its final came again for no reason: finals at {_times(finals, heard.at_s)}, "
                f"asked at {_shown(story.asked_s)}, connections at "
                f"{_shown(begun_s for begun_s, _ in connections if begun_s > finals[0].at_s)}"
            )
    return None


def _times(finals: Sequence[Heard], until_s: float) -> str:
    return _shown(heard.at_s for heard in finals if heard.at_s <= until_s)


def _shown(times_s: Iterable[float]) -> str:
    return ", ".join(f"{at_s:.3f}" for at_s in itertools.islice(times_s, 6)) + " s"


def _is_repeated(before_s: float, again_s: float, connections: Sequence[Span]) -> bool:
    return any(begun_s <= again_s and before_s <= ended_s for begun_s, ended_s in connections)


def _different(story: Story, _: Sequence[Span]) -> str | None:
    for heard in _finals(story):
        fault = _wrong_final(story, heard.payload)
        if fault is not None:
            return fault
    if story.failure is not None and not story.may_be_cancelled:
        return f"its asker was given the error {story.failure}"
    for piece in story.pieces:
        fault = _wrong_piece(story.expected, piece)
        if fault is not None:
            return fault
    if story.streamed is not None:
        given = tuple(story.streamed.get(number, "") for number in range(len(story.expected)))
        fits = zip(given, story.expected, strict=True)
        if story.may_be_cancelled:
            is_right = all(whole.startswith(part) for part, whole in fits)
        else:
            is_right = given == story.expected
        if not is_right:
            return f"its asker was given {given!r}, not {story.expected!r}"
    return None


def _wrong_final(story: Story, payload: bytes) -> str | None:
    try:
        final = parse_final(payload)
    except RequestError as error:
        if story.may_be_cancelled and error.code == "cancelled":
            return None
        return f"it ended with the error {error.code}: {error.message}"
    except ValueError:
        return "its final message cannot be read"
    return None if final.texts == story.expected else f"{final.texts!r}, not {story.expected!r}"


def _wrong_piece(expected: Sequence[str], piece: StreamPart) -> str | None:
    if piece.is_last:
        return None
    choice = piece.choice or 0
    if choice < len(expected) and expected[choice].startswith(piece.text, piece.index):
        return None
    return f"a part of its stream is not of its text: {piece}"


def _num_gaps(story: Story) -> int:
    lengths: dict[int, int] = {}
    num_gaps = 0
    for piece in story.pieces:
        if piece.is_last:
            continue
        choice = piece.choice or 0
        known = lengths.get(choice, 0)
        num_gaps += piece.index > known
        lengths[choice] = max(known, piece.index + len(piece.text))
    return num_gaps


def _body(payload: bytes) -> Any:
    try:
        return msgspec.json.decode(payload)
    except msgspec.DecodeError:
        return None


def _difference(payloads: set[bytes]) -> str:
    """The fields in which finals are not the same."""
    bodies = [_body(payload) for payload in payloads]
    if not all(isinstance(body, dict) for body in bodies):
        return "unreadable"
    keys = sorted({key for body in bodies for key in body})
    return ", ".join(key for key in keys if any(b.get(key) != bodies[0].get(key) for b in bodies))


_FAULTS: Final[Mapping[str, Callable[[Story, Sequence[Span]], str | None]]] = {
    "lost": _lost,
    "doubled": _doubled,
    "different": _different,
}
