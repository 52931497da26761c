"""Strangers get a line in the log each now and then, not one for each thing that they do."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import pytest

from edgecosine.log_throttle import LogThrottle
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.security.trust import unverified_context
from tests.node.credentials.test_enrolment import served
from tests.node.gateway.gateway_talk import answer, ask, assert_still_answers
from tests.node.links.wire_fixtures import logbook
from tests.security.cluster_home import Home
from tests.support.mqtt import HOME, gateway_harness, needs_mosquitto, run


def test_kind_is_due_once_a_minute_and_kinds_are_bounded() -> None:
    complaints = LogThrottle()
    assert [complaints.is_due("a", now) for now in (0.0, 59.0, 60.0, 61.0)] == [
        *(True, False, True, False)
    ]
    kinds = [complaints.is_due(str(number), 70.0) for number in range(5000)]
    assert sum(kinds) < 256
    assert not complaints.is_due("another", 71.0)
    assert complaints.is_due("another", 131.0)


@needs_mosquitto
@pytest.mark.timeout(60)
def test_refused_requests_are_counted_and_logged_once() -> None:
    async def scenario() -> None:
        with logbook() as book:
            async with gateway_harness() as home:
                for number in range(300):
                    home.listener.send(HOME.request("chat"), b"garbage", user=(("client", "cli"),))
                    ask(home, f"b{number}", prompt="")
                ask(home, "last", prompt="")
                assert (await answer(home, "last"))["error"]["code"] == "empty_prompt"
                await assert_still_answers(home)
            lines = [line for line in book.lines if "refused" in line]
            assert len(lines) == 2

    run(scenario())


@needs_mosquitto
@pytest.mark.timeout(60)
def test_cancelled_requests_are_logged_once() -> None:
    async def scenario() -> None:
        with logbook("edgecosine.node.gateway.request_runner") as book:
            async with gateway_harness() as home:
                home.service.hold("hm")
                infos = []
                book.emit = infos.append  # type: ignore[method-assign]
                for number in range(10):
                    ask(home, str(number), prompt="hm", client=f"c{number}")
                    home.listener.send(HOME.job_cancel(str(number)), b"")
                for number in range(10):
                    await home.listener.expect_state(str(number), "cancelled")
            assert len([record for record in infos if record.levelname == "INFO"]) == 1

    run(scenario())


@needs_mosquitto
@pytest.mark.timeout(60)
def test_retained_requests_are_logged_once() -> None:
    async def scenario() -> None:
        with logbook("edgecosine.node.gateway.gateway") as book:
            async with gateway_harness() as home:
                for number in range(20):
                    topic = HOME.job_cancel(str(number))
                    home.listener.mqtt_client.send(Outgoing(topic, b"x", retain=True))
                await home.listener.expect(HOME.job_cancel("19"))
                async with gateway_harness(broker=home.broker, node_id="t2"):
                    pass
            assert len([line for line in book.lines if "retained" in line]) == 1

    run(scenario())


def test_failed_handshakes_of_a_stranger_are_logged_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        with logbook("edgecosine.node.credentials.ca_server") as book:
            async with served(Home(tmp_path)) as address:
                host, _, port = address.rpartition(":")
                for number in range(20):
                    reader, writer = await asyncio.open_connection(host, int(port))
                    writer.write(b"GET / HTTP/1.1\r\n\r\n")
                    with contextlib.suppress(OSError):
                        await reader.read()
                    writer.close()
                    context = unverified_context()
                    with contextlib.suppress(OSError, ssl.SSLError):
                        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
                        writer.write(f"nonsense {number}\n".encode())
                        await reader.read()
                        writer.close()
            assert len([line for line in book.lines if "enrolment failed" in line]) == 2

    run(scenario())
