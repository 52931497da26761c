"""A client's last will cancels its requests, unless the client reconnects in time."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import pytest

from edgecosine.client.client import Client
from edgecosine.protocol.api.retained_topics import OFFLINE
from tests.cli.test_mqtt_commands import at, command
from tests.client.test_client import completion, whole
from tests.node.gateway.gateway_talk import answer, ask
from tests.support.mqtt import HOME, gateway_harness, needs_mosquitto, run

pytestmark = [needs_mosquitto, pytest.mark.timeout(60)]


def test_request_of_a_killed_client_is_cancelled_and_frees_its_slot() -> None:
    async def scenario() -> None:
        async with (
            gateway_harness(absence_s=0.05) as home,
            command("ask", "hm", *at(home)) as process,
        ):
            home.service.hold("hm")
            await home.service.begun(1)
            process.send_signal(signal.SIGKILL)
            [request] = home.service.requests
            await home.listener.expect_state(request.request_id, "cancelled")
            assert home.service.num_closed == 1
            assert home.gateway.admission.num_running == 0

    run(scenario())


def test_any_mqtt_client_can_set_this_last_will() -> None:
    async def scenario() -> None:
        async with gateway_harness(absence_s=0.05) as home:
            home.service.hold("hm")
            process = await asyncio.create_subprocess_exec(
                "mosquitto_sub", "-p", home.broker.url.rpartition(":")[2], "-t", "none",
                "--will-topic", HOME.client_status("cli"), "--will-payload", "offline",
            )  # fmt: skip
            for request_id, client in (("1", "cli"), ("2", "cli"), ("3", "other")):
                ask(home, request_id, client=client, prompt="hm")
                await home.listener.expect_state(request_id, "running")
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await process.wait()
            for request_id in ("1", "2"):
                assert (await answer(home, request_id))["error"]["code"] == "cancelled"
            assert home.listener.states("3")[-1] == "running"

    run(scenario())


def test_client_that_comes_back_keeps_its_requests() -> None:
    async def scenario() -> None:
        async with (
            gateway_harness(absence_s=0.5) as home,
            Client(home.broker.url, "home", client_id="me") as client,
        ):
            gate = home.service.hold("hm")
            async with asyncio.TaskGroup() as group:
                asked = group.create_task(whole(client, completion("1", "hm")))
                await home.service.begun(1)
                home.listener.send(HOME.client_status("me"), OFFLINE)
                home.listener.send(HOME.client_status("me"), b"online")
                home.listener.send(HOME.client_status("you"), OFFLINE)
                # Another's absence, which began later, is over before ours is looked at.
                home.service.hold("mm")
                ask(home, "2", client="you", prompt="mm")
                await home.listener.expect_state("2", "cancelled")
                gate.set()
            assert asked.result()[1].text == "to be"

    run(scenario())
