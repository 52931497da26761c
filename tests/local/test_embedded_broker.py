"""The embedded broker starts, restarts, refuses unusable addresses, and ends with its block."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
from pathlib import Path

import pytest

from edgecosine.client.client import Client
from edgecosine.errors import AddressTaken, BrokerLost, ConfigError
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.node.gateway.gateway import Gateway
from edgecosine.protocol.api.answers import FinalMessage
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Delta
from tests.support.fakes import ScriptedService
from tests.support.mqtt import free_port, needs_mosquitto, run, running

pytestmark = pytest.mark.timeout(60)

needs_amqtt = pytest.mark.skipif(
    importlib.util.find_spec("amqtt") is None, reason="amqtt is not installed"
)


async def refused(port: int) -> bool:
    """Whether connections to a port are refused."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


@needs_mosquitto
def test_broker_ends_with_its_block() -> None:
    async def main() -> None:
        port = free_port()
        async with EmbeddedBroker(port=port) as broker:
            assert broker.kind == "mosquitto"
            assert broker.url == f"mqtt://127.0.0.1:{port}"
            assert not await refused(port)
        assert await refused(port)

    run(main())


@needs_mosquitto
def test_port_in_use_is_refused_with_its_address() -> None:
    async def main() -> None:
        port = free_port()
        async with EmbeddedBroker(port=port):
            with pytest.raises(AddressTaken, match="in use") as refusal:
                async with EmbeddedBroker(port=port):
                    pass
            assert refusal.value.value == f"127.0.0.1:{port}"
        async with EmbeddedBroker(port=port):
            pass

    run(main())


def test_address_of_another_machine_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="address of this machine"):
            async with EmbeddedBroker(host="192.0.2.1", port=free_port(), kind="mosquitto"):
                pass

    run(main())


@needs_mosquitto
def test_end_of_the_broker_is_detected() -> None:
    async def main() -> None:
        async with EmbeddedBroker(port=free_port()) as broker:
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(_end_of(broker))
                os.kill(broker.pid, signal.SIGKILL)
            assert "was ended by SIGKILL" in waiting.result()

    run(main())


@needs_mosquitto
def test_broker_starts_in_a_directory_that_other_users_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def main() -> None:
        async with EmbeddedBroker(port=free_port()) as broker:
            assert broker._log_path.is_relative_to(tmp_path)
            first = broker.pid
            os.kill(first, signal.SIGKILL)
            await _end_of(broker)
            await broker.restart()
            assert broker.pid != first

    run(main())


async def _end_of(broker: EmbeddedBroker) -> str:
    with pytest.raises(BrokerLost) as loss:
        await broker.wait()
    return str(loss.value)


@needs_amqtt
def test_amqtt_carries_a_request() -> None:
    async def main() -> None:
        async with EmbeddedBroker(port=free_port(), kind="amqtt") as broker:
            gateway = Gateway(
                ScriptedService(),
                broker=BrokerAddress.parse(broker.url),
                cluster="home",
                node_id="t1",
            )
            async with running(gateway.run()):
                await gateway.client.connected()
                async with Client(broker.url, "home") as client:
                    request = Request("", "1", "completion", "or not", stream=True)
                    *deltas, final = [step async for step in client.ask(request)]
                    assert isinstance(final, FinalMessage)
                    texts = [step.text for step in deltas if isinstance(step, Delta)]
                    assert "".join(texts) == "to be"

    run(main())
