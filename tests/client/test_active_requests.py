"""A request as its asker sees it: what was missed comes from the final message, nothing twice."""

from __future__ import annotations

import asyncio

import pytest

from edgecosine.client.active_requests import ActiveRequest
from edgecosine.errors import RequestError
from edgecosine.protocol.api.answers import FinalMessage, StreamPart
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Delta


def taken_of(asking: ActiveRequest) -> str:
    """All text that can be taken."""
    texts = []
    while (delta := asking.take()) is not None:
        texts.append(delta.text)
    return "".join(texts)


FINAL = FinalMessage("1", ("to be or not",), "stop", {})


def pieces(*texts: str, start: int = 0) -> list[StreamPart]:
    """Parts that follow each other, the first of them behind `start` characters."""
    return [
        StreamPart(start + len("".join(texts[:number])), text, False)
        for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (pieces("to", " be"), []),
        (pieces("to", " be"), pieces(" not", start=8)),
        (pieces("to", " be"), pieces("to", " be", " or", " not")),
        (pieces("to", " be"), pieces("to be", " or not")),
        (pieces("to be or not"), pieces("to")),
        (pieces("to", " be"), pieces("o be or", start=1)),
        (pieces("to", " be or"), pieces(" be", " or", " not", start=2)),
        (pieces("to"), pieces("to be or not")),
        ([], pieces(" be", start=1)),
        ([], []),
    ],
)
def test_text_is_complete_without_repetition(
    before: list[StreamPart], after: list[StreamPart]
) -> None:
    async def scenario() -> str:
        asking = ActiveRequest(Request("a", "1", "completion", "x", stream=True))
        taken = []
        for part in (before, after):
            for piece in part:
                asking.take_piece(piece)
            taken.append(taken_of(asking))
        asking.finish(FINAL)
        taken.append(taken_of(asking))
        assert asking.is_over
        assert asking.result() is FINAL
        return "".join(taken)

    assert asyncio.run(scenario()) == FINAL.text


def test_request_without_stream_has_the_text_of_the_final() -> None:
    async def scenario() -> None:
        asking = ActiveRequest(Request("a", "1", "completion", "x"))
        assert not asking.is_over
        with pytest.raises(RuntimeError):
            asking.result()
        asking.finish(FINAL)
        assert asking.is_over
        assert asking.take() is None

    asyncio.run(scenario())


def test_text_is_collected_by_choice() -> None:
    async def scenario() -> None:
        asking = ActiveRequest(Request("a", "1", "completion", "x", stream=True, n=3))
        for index, choice, text in [(0, 0, "to"), (0, 2, "or"), (2, 0, " be"), (0, 9, "?")]:
            asking.take_piece(StreamPart(index, text, False, choice))
        assert [asking.take(), asking.take()] == [Delta(0, "to be"), Delta(1, "or", 2)]
        assert asking.take() is None
        asking.finish(FinalMessage("1", ("to be", "hm", "or not", "too many"), "stop", {}))
        assert [asking.take(), asking.take()] == [Delta(2, " not", 2), Delta(3, "hm", 1)]
        assert asking.is_over

    asyncio.run(scenario())


def test_first_end_of_a_request_counts() -> None:
    async def scenario() -> None:
        asking = ActiveRequest(Request("a", "1", "completion", "x", stream=True))
        asking.take_piece(StreamPart(0, "to", False))
        asking.fail(RequestError("no"))
        asking.finish(FINAL)
        assert asking.is_over
        with pytest.raises(RequestError, match="no"):
            asking.result()

    asyncio.run(scenario())
