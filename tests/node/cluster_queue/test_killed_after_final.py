"""A target that is killed around the publication of a final: no other final contradicts it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path

import pytest

from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.node.cluster_queue import members
from edgecosine.node.cluster_queue import state as queue_state
from edgecosine.protocol.api.claim_messages import Claim, read_work
from tests.node.cluster_queue.test_coordinator import gateway
from tests.node.cluster_queue.test_unseen_deaths import OF_DEAD
from tests.support.fakes import ScriptedService
from tests.support.killable import KillableProcess
from tests.support.mqtt import (
    HOME,
    PATIENCE_S,
    free_port,
    listening,
    needs_mosquitto,
    run,
    running,
)
from tests.support.stream_reader import ReceivedAnswer

pytestmark = needs_mosquitto

KILLED = """
import os, signal, sys, uvloop
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.node.gateway.gateway import Gateway
from tests.support.fakes import ScriptedService
service = ScriptedService()
service.errors["bad"] = RuntimeError("this target only")
gateway = Gateway(service, broker=BrokerAddress.parse(sys.argv[1]), cluster="home",
                  node_id="ghost", identity="x")
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "before the claim has the final":
    gateway.queue.when_owned = die
elif sys.argv[2] == "before the final is sent":
    when_owned = gateway.queue.when_owned
    gateway.queue.when_owned = lambda key, end, _: when_owned(key, end, die)
else:
    gateway.queue.finish = die
uvloop.run(gateway.run())
"""


@pytest.mark.parametrize("prompt", ["hm", "bad"])
@pytest.mark.parametrize(
    ("moment", "num_finals"),
    [
        ("before the claim has the final", 1),
        ("before the final is sent", 1),
        ("before the claim is cleared", 2),
    ],
)
def test_all_finals_of_a_request_have_the_same_bytes(
    prompt: str, moment: str, num_finals: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "GRACE_S", 0.5)
    monkeypatch.setattr(queue_state, "UNCLAIMED_S", 1e6)

    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            broker = await stack.enter_async_context(EmbeddedBroker(port=free_port()))
            killed = KillableProcess(
                (sys.executable, "-c", KILLED, broker.url, moment), tmp_path / "log"
            )
            stack.push_async_callback(killed.kill)
            listener = await stack.enter_async_context(listening(broker))
            await killed.start()
            await listener.expect(HOME.status)
            service = ScriptedService()
            target = gateway(broker, "a", service, "x")
            await stack.enter_async_context(running(target.run()))
            async with asyncio.timeout(PATIENCE_S):
                await target.client.connected()
                while not target.queue.active_peers:  # noqa: ASYNC110 -- no event
                    await asyncio.sleep(0.01)
            listener.send(
                HOME.request("completion"),
                {"client": "cli", "id": OF_DEAD[0], "prompt": prompt, "stream": True},
            )
            finals = await listener.expect(HOME.response("cli", OF_DEAD[0]), num_finals)
            async with asyncio.timeout(PATIENCE_S):
                await killed.process.wait()
            assert len({message.payload for message in finals}) == 1
            claims = [
                read_work(message.payload)
                for message in listener.received
                if message.topic == HOME.work("cli", OF_DEAD[0])
            ]
            ends = {claim.end for claim in claims if isinstance(claim, Claim) and claim.end}
            assert [end.final.body for end in ends] == [finals[0].payload]
            was_run_twice = moment == "before the claim has the final"
            assert len(service.requests) == was_run_twice
            body = json.loads(finals[0].payload)
            assert ("choices" in body) == (prompt == "hm" or was_run_twice)
            stream = await listener.expect(HOME.stream("cli", OF_DEAD[0]))
            received = ReceivedAnswer()
            assert all(received.add(json.loads(part.payload)) for part in stream)
            if "choices" in body:
                received.check(body)

    run(scenario())
