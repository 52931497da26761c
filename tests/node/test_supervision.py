"""Weather is survived with growing pauses; bugs are not."""

from __future__ import annotations

import asyncio

import pytest

from edgecosine.discovery.backoff import Backoff
from edgecosine.errors import BrokerLost, LinkLost
from edgecosine.node.supervision import supervise
from tests.node.wire_fixtures import run

AT_ONCE = Backoff(0.0, 0.0)


class Failing:
    """Raises what it was given, one ending after another, then returns."""

    def __init__(self, *endings: Exception) -> None:
        self.endings = list(endings)
        self.num_starts = 0
        self.has_started = asyncio.Event()

    async def run(self) -> str:
        self.num_starts += 1
        self.has_started.set()
        if self.endings:
            raise self.endings.pop(0)
        return "done"


def test_weather_is_survived() -> None:
    work = Failing(LinkLost("rain"), BrokerLost("wind"), LinkLost("rain"))
    assert run(supervise("work", work.run, backoff=AT_ONCE)) == "done"
    assert work.num_starts == 4


def test_a_bug_propagates() -> None:
    work = Failing(LinkLost("rain"), KeyError("bug"))
    with pytest.raises(KeyError):
        run(supervise("work", work.run, backoff=AT_ONCE))
    assert work.num_starts == 2


def test_only_the_named_weather_is_survived() -> None:
    work = Failing(BrokerLost("wind"))
    with pytest.raises(BrokerLost):
        run(supervise("work", work.run, restart_on=(LinkLost,), backoff=AT_ONCE))


def test_a_pause_can_be_cancelled() -> None:
    async def main() -> None:
        work = Failing(LinkLost("rain"))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(supervise("work", work.run, backoff=Backoff(60.0, 60.0)))
            await work.has_started.wait()
            task.cancel()
        assert task.cancelled()
        assert work.num_starts == 1

    run(main())


def test_a_quiet_time_makes_the_next_pause_short_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    work = Failing(*(LinkLost("rain") for _ in range(3)))
    run(supervise("work", work.run, backoff=AT_ONCE, quiet_s=0.0))
    assert caplog.text.count("attempt=1 ") == 3
