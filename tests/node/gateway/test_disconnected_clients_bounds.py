"""Clients that are away: a bounded number is remembered, and who comes back wants its answers."""

from __future__ import annotations

import asyncio

from edgecosine.node.gateway.disconnected_clients import DisconnectedClients
from tests.node.links.wire_fixtures import run


def test_no_more_clients_are_waited_for_than_the_bound_says() -> None:
    async def main() -> None:
        absences = DisconnectedClients(lambda _: None, grace_s=60.0)
        for number in range(3000):
            absences.left(str(number))
        assert repr(absences) == "<DisconnectedClients [1024 away]>"
        absences.came("0")
        absences.left("one more")
        assert repr(absences) == "<DisconnectedClients [1024 away]>"
        absences.close()
        assert repr(absences) == "<DisconnectedClients [0 away]>"

    run(main())


def test_who_stays_away_is_told_once_and_who_comes_back_is_not() -> None:
    async def main() -> None:
        gone: list[str] = []
        is_over = asyncio.Event()

        def end(client_id: str) -> None:
            gone.append(client_id)
            is_over.set()

        absences = DisconnectedClients(end, grace_s=0.0)
        absences.left("away")
        absences.left("away")
        absences.left("back")
        absences.came("back")
        await is_over.wait()
        await asyncio.sleep(0)
        assert gone == ["away"]
        assert repr(absences) == "<DisconnectedClients [0 away]>"

    run(main())
