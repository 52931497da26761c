"""URLs of brokers: what is right, what is wrong, and what is never shown."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from edgecosine.errors import BrokerLost, ConfigError
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt.broker_address import BrokerAddress, holds_password, without_password
from edgecosine.mqtt.connection import connect
from tests.security.cluster_home import Home
from tests.support.mqtt import free_port, needs_mosquitto, run

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("mqtt://[fe80::1%25lo]", "fe80::1%lo", 1883),
        ("mqtt://[fe80::1%lo]:1", "fe80::1%lo", 1),
        ("mqtt://bücher.lan", "bücher.lan", 1883),
        ("mqtts://hub:65535", "hub", 65535),
        ("mqtt://hub:", "hub", 1883),
    ],
)
def test_broker_host_and_port_are_parsed(url: str, host: str, port: int) -> None:
    address = BrokerAddress.parse(url)
    assert (address.host, address.port) == (host, port)


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://[::1", "mqtt://::1]", "mqtt://[hub]", "mqtt://hub:0", "mqtt://hub:65536",
        "mqtt://hub:-1", f"mqtt://{'a' * 64}", f"mqtt://{'ü' * 64}", "mqtt://a..b", "mqtt://a b",
        "mqtt://hub?tls", "mqtt://hub#1", "mqtt://a\0b", "mqtt://me@", "mqtt:hub",
    ],
)  # fmt: skip
def test_invalid_address_is_refused_as_it_was_given(url: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        BrokerAddress.parse(url)
    assert refusal.value.value == url


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://me:se:cret@hub:x", "http://me:secret@hub", "me:secret@hub", "mqtt:me:secret@hub",
        "mqtt://me:se/cret@hub", "mqtt://:secret@hub/x", "http://me:se\ncret@hub", "MQTT://a:secret@",
    ],
)  # fmt: skip
def test_password_is_never_shown(url: str) -> None:
    assert holds_password(url)
    shown = without_password(url)
    assert "cret" not in shown
    assert ":…@" in shown
    with pytest.raises(ConfigError) as refusal:
        BrokerAddress.parse(url)
    assert "cret" not in str(refusal.value)


@pytest.mark.parametrize("url", ["mqtt://me@hub:x", "mqtt://hub:1883", "mqtt://[::1]:1", "none"])
def test_url_without_a_password_is_shown_as_it_is(url: str) -> None:
    assert not holds_password(url)
    assert without_password(url) == url


@needs_mosquitto
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho's socket
def test_plain_text_broker_is_detected_by_a_tls_client() -> None:
    async def scenario() -> None:
        async with EmbeddedBroker(port=free_port()) as broker:
            address = BrokerAddress.parse(broker.url.replace("mqtt:", "mqtts:"))
            with pytest.raises(BrokerLost, match="speaks plain text there: mqtt://"):
                async with connect(address, client_id="me"):
                    pass

    run(scenario())


def test_tls_broker_is_detected_by_a_plain_text_client(tmp_path: Path) -> None:
    home = Home(tmp_path)
    key, chain = home.authority.issue_broker(["127.0.0.1"], home.now)
    (tmp_path / "pem").write_text(key + chain)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "pem")

    async def scenario() -> None:
        server = await asyncio.start_server(_listen, "127.0.0.1", 0, ssl=tls)
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        async with server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(BrokerLost, match="speaks TLS there: mqtts://"):
                async with connect(BrokerAddress("127.0.0.1", port), client_id="me"):
                    pass

    run(scenario())


async def _listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()
