"""Mosquitto's own command-line clients, MQTT 5 and 3.1.1: the shell is a client like any other."""

from __future__ import annotations

import asyncio
import contextlib
import json
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator

import pytest

from edgecosine.local.embedded_broker import EmbeddedBroker
from tests.node.gateway.gateway_talk import assert_still_answers
from tests.support.mqtt import HOME, gateway_harness, needs_mosquitto, run, shell

pytestmark = [needs_mosquitto, pytest.mark.timeout(60)]


def at(broker: EmbeddedBroker, version: str = "5") -> tuple[str, ...]:
    """Options that lead a command-line client to a broker."""
    return ("-h", "127.0.0.1", "-p", broker.url.rpartition(":")[2], "-V", version)


@contextlib.asynccontextmanager
async def mosquitto_sub(broker: EmbeddedBroker, *options: str) -> AsyncIterator[Process]:
    """A subscriber that is subscribed: it has printed the retained status."""
    process = await asyncio.create_subprocess_exec(
        "mosquitto_sub", *at(broker, "311"), "-t", HOME.status, *options, "-v", stdout=PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == f"{HOME.status} online\n".encode()
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def test_rr_gets_the_answer_to_a_bare_prompt() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            answer = await shell(
                "mosquitto_rr",
                *at(home.broker),
                *("-t", HOME.request("ask"), "-e", HOME.response("shell", "1"), "-m", "or not"),
            )
            assert answer == "to be\n"

    run(scenario())


def test_rr_gets_the_correlation_back() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            answer = await shell(
                "mosquitto_rr",
                *at(home.broker),
                *("-t", HOME.request("completion"), "-e", HOME.response("shell", "1")),
                *("-m", '{"prompt": "or not"}', "-D", "publish", "correlation-data", "job-42"),
                *("-F", "%D|%C|%P|%p"),
            )
            correlation, content_type, users, body = answer.split("|")
            assert (correlation, content_type) == ("job-42", "application/json")
            assert "status:200" in users
            assert json.loads(body)["id"] == "job-42"

    run(scenario())


@pytest.mark.parametrize("version", ["5", "311"])
def test_pub_and_sub_work_with_names_in_the_body(version: str) -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            topic = HOME.response("shell", "7")
            async with mosquitto_sub(home.broker, "-t", topic, "-C", "2") as process:
                await shell(
                    "mosquitto_pub",
                    *at(home.broker, version),
                    *("-t", HOME.request("chat"), "-q", "1", "-m"),
                    '{"id": "7", "client": "shell",'
                    ' "messages": [{"role": "user", "content": "or not"}]}',
                )
                assert process.stdout is not None
                name, _, body = (await process.stdout.readline()).decode().partition(" ")
                assert name == topic
                assert json.loads(body)["choices"][0]["message"]["content"] == "to be"

    run(scenario())


def test_pub_cancels_by_an_empty_message() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            home.service.hold("hm")
            home.listener.send(HOME.request("completion"), {"id": "7", "prompt": "hm"})
            await home.listener.expect_state("7", "running")
            await shell("mosquitto_pub", *at(home.broker, "311"), "-t", HOME.job_cancel("7"), "-n")
            await home.listener.expect_state("7", "cancelled")

    run(scenario())


def test_pub_expiry_of_mqtt_5_is_a_deadline() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            home.service.hold("hm")
            await shell(
                "mosquitto_pub",
                *at(home.broker),
                *("-t", HOME.request("completion"), "-m", '{"id": "7", "prompt": "hm"}'),
                *("-D", "publish", "message-expiry-interval", "1"),
            )
            final = await home.listener.expect_json(HOME.response("anon", "7"))
            assert final["error"]["code"] == "deadline_exceeded"

    run(scenario())


@pytest.mark.parametrize(
    "topic",
    [
        "zigbee2mqtt/lock/set",
        HOME.request("ask"),
        HOME.status,
        HOME.node_status("target-1"),
        HOME.stream("other", "1"),
        HOME.response("", "").rstrip("/") + "/",
        "edgecosine/another/response/shell/7",
        HOME.response("shell", "7" * 300),
        HOME.response("alice", "7"),
    ],
    ids=lambda topic: topic[:40],
)
def test_foreign_response_topic_gets_nothing(topic: str) -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            await shell(
                "mosquitto_pub",
                *at(home.broker),
                *("-t", HOME.request("ask"), "-m", "or not"),
                *("-D", "publish", "response-topic", topic),
                *("-D", "publish", "correlation-data", "7"),
                *("-D", "publish", "user-property", "client", "shell"),
            )
            final = await home.listener.expect_json(HOME.response("shell", "7"))
            assert final["error"]["code"] == "reply_topic_refused"
            assert home.service.requests == []
            await assert_still_answers(home)

    run(scenario())


def test_packet_beyond_the_brokers_limit_is_not_delivered() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            process = await asyncio.create_subprocess_exec(
                "mosquitto_pub",
                *at(home.broker),
                *("-q", "1", "-t", HOME.request("ask"), "-s"),
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
            )
            await process.communicate(bytes(2 << 20))
            assert home.service.requests == []
            home.listener.send(HOME.request("completion"), {"id": "7", "prompt": "x"})
            assert "choices" in await home.listener.expect_json(HOME.response("anon", "7"))

    run(scenario())
