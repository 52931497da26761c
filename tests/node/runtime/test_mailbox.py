"""Mailboxes give each sender one answer or error, in order."""

from __future__ import annotations

import asyncio

import pytest

from edgecosine.errors import ActorStopped
from edgecosine.node.runtime.mailbox import Mailbox
from tests.node.links.wire_fixtures import run


async def let_run() -> None:
    """Let every task run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_each_sender_gets_its_own_answer_in_order() -> None:
    async def main() -> None:
        mailbox: Mailbox[int, str] = Mailbox("numbers", 8)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(mailbox.ask(number)) for number in range(5)]
            await let_run()
            first, rest = await mailbox.take(2), await mailbox.take(8)
            assert [envelope.message for envelope in [*first, *rest]] == [0, 1, 2, 3, 4]
            for envelope in [*rest, *first]:
                envelope.answer(f"<{envelope.message}>")
        assert [task.result() for task in tasks] == ["<0>", "<1>", "<2>", "<3>", "<4>"]

    run(main())


def test_take_waits_for_a_message_with_a_waiting_sender() -> None:
    async def main() -> None:
        mailbox: Mailbox[str, str] = Mailbox("patient", 8)
        async with asyncio.TaskGroup() as group:
            taking = group.create_task(mailbox.take(8))
            leaver = group.create_task(mailbox.ask("gone"))
            await asyncio.sleep(0)
            leaver.cancel()
            await let_run()
            assert not taking.done()
            stayer = group.create_task(mailbox.ask("here"))
            [envelope] = await taking
            envelope.answer("yes")
            assert await stayer == "yes"

    run(main())


def test_answer_to_a_cancelled_sender_is_dropped() -> None:
    async def main() -> None:
        mailbox: Mailbox[int, int] = Mailbox("m", 8)
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(mailbox.ask(1))
            [envelope] = await mailbox.take(1)
            asking.cancel()
            await let_run()
            assert not envelope.is_open
            envelope.answer(2)
            envelope.fail(ValueError())

    run(main())


def test_only_waiting_senders_take_room() -> None:
    async def main() -> None:
        mailbox: Mailbox[int, int] = Mailbox("small", 2)
        async with asyncio.TaskGroup() as group:
            for number in range(10):
                task = group.create_task(mailbox.ask(number))
                await let_run()
                task.cancel()
                await let_run()
            staying = [group.create_task(mailbox.ask(number)) for number in (10, 11)]
            await let_run()
            with pytest.raises(RuntimeError, match="more than were admitted"):
                await mailbox.ask(12)
            for envelope in await mailbox.take(8):
                envelope.answer(-envelope.message)
        assert [task.result() for task in staying] == [-10, -11]

    run(main())


def test_closed_mailbox_fails_its_waiting_senders() -> None:
    async def refused(mailbox: Mailbox[int, int], number: int) -> str:
        with pytest.raises(ActorStopped) as refusal:
            await mailbox.ask(number)
        return str(refusal.value)

    async def main() -> None:
        mailbox: Mailbox[int, int] = Mailbox("closing", 8)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(refused(mailbox, number)) for number in range(3)]
            await let_run()
            [taken] = mailbox.take_nowait(1)
            mailbox.close()
            taken.fail(ActorStopped("taken"))
        words = [task.result() for task in tasks]
        assert words == ["taken", "closing has stopped", "closing has stopped"]
        assert await refused(mailbox, 4) == "closing has stopped"

    run(main())
