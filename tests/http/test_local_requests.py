"""Requests over HTTP belong to the target that received them, beside others and after a restart."""

from __future__ import annotations

import asyncio

import pytest

from edgecosine.balance.admission import AdmissionControl
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.node.durability.recovery import RecoveredState
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.request_record import RequestRecord, RequestTicket, local_client
from tests.support.fakes import ScriptedService, request_manager
from tests.support.http import http_harness
from tests.support.mqtt import free_port, run, running


def test_target_serves_what_it_received_beside_another_target() -> None:
    async def scenario() -> None:
        async with (
            EmbeddedBroker(port=free_port()) as broker,
            http_harness(broker=broker) as one,
            http_harness(broker=broker, node_id="t2") as two,
        ):
            while not (one.home.gateway.queue.active_peers and two.home.gateway.queue.active_peers):
                await one.home.listener.expect("edgecosine/home/target/t2/standing")
                await asyncio.sleep(0)
            for home in (one, two):
                for number in range(4):
                    reply = await home.http.post("/v1/completions", json={"prompt": str(number)})
                    assert reply.status_code == 200
                assert len(home.service.requests) == 4

    run(scenario())


@pytest.mark.parametrize("is_named", [True, False])
def test_request_goes_on_after_a_restart_if_its_client_can_ask_for_it(is_named: bool) -> None:
    client_id = local_client("kitchen")
    ticket = RequestTicket(client_id, "1", "completion", f"{client_id}/1", is_named=is_named)
    left = RequestRecord(ticket, Request(client_id, "1", "completion", "or not"))
    service = ScriptedService()

    async def scenario() -> None:
        manager = request_manager(
            service, lambda _: None, AdmissionControl(num_slots=4, max_queued=8),
            recovered=RecoveredState(requests=(left,)),
        )  # fmt: skip
        async with running(manager.run()):
            await asyncio.sleep(0)
            await manager.runner.idle()
            assert len(service.requests) == is_named
            assert manager.table.has_finished(ticket.key) == is_named

    run(scenario())
