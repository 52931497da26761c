"""Counters of second draft requests, of starts and of resumed requests."""

from __future__ import annotations

import asyncio
from pathlib import Path

from edgecosine.balance.admission import AdmissionControl
from edgecosine.counters import Counters
from edgecosine.node.durability.journal import DiskJournal
from edgecosine.node.durability.recovery import RecoveredState
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.request_record import RequestRecord, RequestTicket
from edgecosine.protocol.api.topics import Topics
from tests.node.links.wire_fixtures import run
from tests.support.cluster import Drafter, LinkFault, harness
from tests.support.engines import ScriptedDrafter, ScriptedTarget, babble
from tests.support.fakes import ScriptedService, request_manager

HOME = Topics("home")


def test_starts_on_one_journal_are_counted(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        journal = DiskJournal(tmp_path)
        assert journal.num_starts == number
        journal.store.close()


def test_second_request_to_a_drafter_that_lacks_tokens_is_counted() -> None:
    language = babble()

    async def counted(*fault: LinkFault) -> int:
        setup = Drafter(ScriptedDrafter(language), fault)
        async with harness(ScriptedTarget(language), [setup]) as home:
            await home.answer(Request("a", "1", "ask", "To be", max_tokens=20))
            return home.planner.statistics.num_retries

    async def main() -> None:
        assert await counted(LinkFault.FINE) == 0
        assert await counted(LinkFault.FINE, LinkFault.FINE, LinkFault.FORGOTTEN) > 0

    run(main())


def test_resumed_request_is_counted() -> None:
    async def main() -> None:
        service, counters, is_sent = ScriptedService(), Counters(), asyncio.Event()

        def send(message: Outgoing) -> None:
            if message.topic == HOME.response("a", "1"):
                is_sent.set()

        ticket = RequestTicket("a", "1", "completion", HOME.response("a", "1"))
        job = RequestRecord(ticket, Request("a", "1", "completion", "x"), age_s=1.0)
        manager = request_manager(
            service, send, AdmissionControl(num_slots=1, max_queued=4), counters=counters,
            recovered=RecoveredState((job,)),
        )  # fmt: skip
        async with asyncio.TaskGroup() as group:
            running = group.create_task(manager.run())
            await is_sent.wait()
            running.cancel()
        assert counters.view() == {"resumed": 1}

    run(main())
