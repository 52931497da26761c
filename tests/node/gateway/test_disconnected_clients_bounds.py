"""Grace periods of disconnected clients: their number is bounded, and reconnection ends them."""

from __future__ import annotations

import asyncio

from edgecosine.node.gateway.disconnected_clients import DisconnectedClients
from tests.node.links.wire_fixtures import run


def test_grace_periods_are_bounded() -> None:
    async def main() -> None:
        absences = DisconnectedClients(lambda _: None, grace_s=60.0)
        for number in range(3000):
            absences.disconnected(str(number))
        assert repr(absences) == "<DisconnectedClients [1024 away]>"
        absences.connected("0")
        absences.disconnected("one more")
        assert repr(absences) == "<DisconnectedClients [1024 away]>"
        absences.close()
        assert repr(absences) == "<DisconnectedClients [0 away]>"

    run(main())


def test_client_that_stays_away_is_reported_once() -> None:
    async def main() -> None:
        gone: list[str] = []
        is_over = asyncio.Event()

        def end(client_id: str) -> None:
            gone.append(client_id)
            is_over.set()

        absences = DisconnectedClients(end, grace_s=0.0)
        absences.disconnected("away")
        absences.disconnected("away")
        absences.disconnected("back")
        absences.connected("back")
        await is_over.wait()
        await asyncio.sleep(0)
        assert gone == ["away"]
        assert repr(absences) == "<DisconnectedClients [0 away]>"

    run(main())
