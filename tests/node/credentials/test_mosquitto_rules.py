"""A real Mosquitto under the configuration that `cluster broker-config` writes: permissions."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from edgecosine.client import forget as forgetting
from edgecosine.client.client import Client
from edgecosine.errors import BrokerLost
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.connection import Connection, connect
from edgecosine.mqtt.node_status import NodeStatusPublisher
from edgecosine.node.gateway.gateway import Gateway
from edgecosine.protocol.api.answers import FinalMessage
from edgecosine.protocol.api.claim_messages import MembershipStatus, membership_notice
from edgecosine.protocol.api.home_assistant import cluster_topic, node_topic, root
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Delta
from edgecosine.protocol.api.retained_topics import node_state_notice, node_status_notice
from edgecosine.protocol.api.topics import Topics
from edgecosine.security.credentials import Credentials
from edgecosine.security.mosquitto import BrokerFiles, write_configuration
from tests.security.cluster_home import Home
from tests.support.fakes import ScriptedService
from tests.support.mqtt import free_port, needs_mosquitto, run, running

pytestmark = [needs_mosquitto, pytest.mark.timeout(60)]

TOPICS = Topics("lab")


@dataclass
class SecuredBroker:
    """A broker that accepts known clients and nodes only."""

    home: Home
    passwords: dict[str, str]
    port: int
    node_port: int

    def client(self, name: str, password: str | None = None) -> BrokerAddress:
        """The address for a client."""
        return BrokerAddress.parse(
            f"mqtts://127.0.0.1:{self.port}",
            username=name,
            password=self.passwords.get(name, "") if password is None else password,
            ca_file=self.home.folder / "ca.pem",
        )

    def node(self, credentials: Credentials | None) -> BrokerAddress:
        """The address for a node."""
        return BrokerAddress.parse(
            f"mqtts://127.0.0.1:{self.node_port}",
            ca_file=self.home.folder / "ca.pem",
            certificate_file=credentials.node_file if credentials else None,
        )


@contextlib.asynccontextmanager
async def secured_broker(home: Home) -> AsyncIterator[SecuredBroker]:
    """The broker inside the block. A target `target-1`, clients alice and bob."""
    port, node_port = free_port(), free_port()
    folder = home.folder / "broker"
    key, chain = home.authority.issue_broker(["127.0.0.1", "localhost"], home.now)
    trust = home.authority.trust_list(home.now)
    (home.folder / "ca.pem").write_text(trust.authorities)
    passwords = write_configuration(
        folder,
        BrokerFiles(
            topics=TOPICS, key=key, chain=chain, authorities=trust.authorities,
            revoked=trust.revoked, targets=["target-1"], clients=["alice", "bob"],
            client_port=port, node_port=node_port,
        ),
    )  # fmt: skip
    conf = folder / "mosquitto.conf"
    conf.write_text(conf.read_text() + "user root\n")  # it would give its rights to read up
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin") or "mosquitto"
    process = await asyncio.create_subprocess_exec(
        program, "-c", str(conf), stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(10):
            while b" running" not in (line := await process.stderr.readline()):
                assert line, "the broker ended"
        yield SecuredBroker(home, passwords, port, node_port)
    finally:
        process.terminate()
        await process.communicate()


@contextlib.asynccontextmanager
async def running_cluster(broker: SecuredBroker) -> AsyncIterator[ScriptedService]:
    """A gateway and a drafter's presence on the broker."""
    target = broker.home.admit("target-1", "target")
    drafter = broker.home.admit("drafter-1")
    service = ScriptedService()
    gateway = Gateway(service, broker=broker.node(target), cluster="lab", node_id="target-1")
    presence = NodeStatusPublisher(broker=broker.node(drafter), cluster="lab", node_id="drafter-1")
    async with running(gateway.run()), running(presence.run()):
        await gateway.client.connected()
        await presence.connected()
        presence.publish_presence("ready")
        yield service


def guarded(tmp_path: Path, scenario: Any) -> None:
    """Run a coroutine with a secured broker and a cluster."""

    async def main() -> None:
        async with secured_broker(Home(tmp_path)) as broker, running_cluster(broker) as service:
            await scenario(broker, service)

    coroutine: Coroutine[Any, Any, None] = main()
    run(coroutine)


async def ask(client: Client, prompt: str = "or not") -> str:
    request = Request(
        client_id="", request_id="1", kind="completion", prompt=prompt, stream=True
    )  # fmt: skip
    text = ""
    async with contextlib.aclosing(client.ask(request)) as steps:
        async for step in steps:
            match step:
                case Delta(_, piece):
                    text += piece
                case FinalMessage():
                    return text
    raise AssertionError("no final message")


async def received(connection: Connection, until: str) -> list[str]:
    """Topics of everything that comes before a message on `until`."""
    topics = []
    async for message in connection.messages():
        if message.topic == until:
            return topics
        topics.append(message.topic)
    raise AssertionError("the broker hung up")


def test_client_with_its_password_sends_requests_and_sees_the_nodes(tmp_path: Path) -> None:
    async def scenario(broker: SecuredBroker, service: ScriptedService) -> None:
        async with Client(broker.client("alice"), "lab") as client:
            assert client.client_id == "alice"
            assert await ask(client) == "to be"
            while "drafter-1" not in (nodes := await client.nodes()):
                await client.changed()
            assert nodes["drafter-1"].is_here
        assert service.requests[0].client_id == "alice"

    guarded(tmp_path, scenario)


def test_client_receives_no_answer_of_another(tmp_path: Path) -> None:
    async def scenario(broker: SecuredBroker, service: ScriptedService) -> None:
        mark = TOPICS.response("bob", "mark")
        async with connect(broker.client("bob"), client_id="eve") as eve:
            for filters in (f"{TOPICS.root}/#", TOPICS.response("alice", "#"), "#",
                            TOPICS.stream("+", "+"), TOPICS.job_state("+"),
                            TOPICS.request("completion")):  # fmt: skip
                with contextlib.suppress(BrokerLost):  # said so at once, or kept silently
                    await eve.subscribe([filters])
            await eve.subscribe([mark])
            async with Client(broker.client("alice"), "lab") as client:
                assert await ask(client) == "to be"
            await eve.publish(Outgoing(mark, b""))
            public = (TOPICS.status, TOPICS.info, f"{TOPICS.root}/node/")
            private = [t for t in await received(eve, mark) if not t.startswith(public)]
            assert private == []

    guarded(tmp_path, scenario)


@pytest.mark.parametrize(
    "topic",
    [
        TOPICS.status,
        TOPICS.info,
        TOPICS.node_status("drafter-1"),
        TOPICS.node_state("bob"),
        TOPICS.node_status("bob"),
        TOPICS.response("alice", "1"),
        TOPICS.stream("alice", "1"),
        TOPICS.job_state("1"),
        TOPICS.client_status("alice"),
        TOPICS.work("bob", "1"),
        TOPICS.membership("bob"),
        TOPICS.inbox("bob"),
        "zigbee2mqtt/lock/set",
    ],
)
def test_client_cannot_publish_as_the_cluster_a_node_or_another_client(
    tmp_path: Path, topic: str
) -> None:
    assert run(reaches(tmp_path, "bob", topic)) is False


@pytest.mark.parametrize(
    ("topic", "is_allowed"),
    [
        (TOPICS.node_status("drafter-1"), True),
        (TOPICS.node_status("drafter-2"), False),
        (TOPICS.status, False),
        (TOPICS.response("alice", "1"), False),
        (TOPICS.request("completion"), False),
        (TOPICS.work("alice", "1"), False),
        (TOPICS.membership("drafter-1"), False),
        (TOPICS.inbox("target-1"), False),
        (node_topic(TOPICS, "drafter-1"), True),
        (node_topic(TOPICS, "drafter-2"), False),
        (cluster_topic(TOPICS), False),
    ],
)
def test_drafter_publishes_its_own_status_only(
    tmp_path: Path, topic: str, is_allowed: bool
) -> None:
    assert run(reaches(tmp_path, "drafter-1", topic)) is is_allowed


@pytest.mark.parametrize("is_revoked", [False, True])
def test_false_message_of_a_drafter_blocks_no_target(tmp_path: Path, is_revoked: bool) -> None:
    home = Home(tmp_path)

    async def main() -> None:
        async with secured_broker(home) as broker:
            adversary = broker.node(home.admit("evil"))
            status = MembershipStatus("evil", "s", "other", "other", 0.0, "ready")
            async with connect(adversary, client_id="x", version="5") as publisher:
                for lie in (
                    node_status_notice(TOPICS, "evil", "ready", session="s", now_s=0.0),
                    node_state_notice(
                        TOPICS, "evil", {"role": "target", "model": "other", "is_full": True}
                    ),
                    membership_notice(TOPICS, status),
                ):
                    await publisher.publish(replace(lie, expiry_s=None))
            if is_revoked:
                home.authority.revoke("evil", home.now)
            async with (
                running_cluster(broker),
                Client(broker.client("alice"), "lab") as client,
            ):
                assert await ask(client) == "to be"
                assert (await client.nodes())["evil"].state["role"] == "no target"
                assert not any("full" in concern for concern in await client.concerns())

    run(main())


def test_only_a_target_can_clear_another_nodes_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "_ANSWER_S", 1.0)
    home = Home(tmp_path)

    async def main() -> None:
        async with secured_broker(home) as broker:
            gone = broker.node(home.admit("evil"))
            lost = node_status_notice(TOPICS, "evil", "lost", session="s", now_s=0.0)
            async with connect(gone, client_id="x", version="5") as publisher:
                await publisher.publish(lost)
            for name in ("alice", "bob"):
                with pytest.raises(BrokerLost, match="credentials of a target"):
                    await forgetting.forget(broker.client(name), "lab", "evil")
            with pytest.raises(BrokerLost, match="credentials of a target"):
                await forgetting.forget(broker.node(home.admit("other")), "lab", "evil")
            target = broker.node(home.admit("target-1", "target"))
            await forgetting.forget(target, "lab", "evil")
            async with Client(broker.client("alice"), "lab") as client:
                assert await client.nodes() == {}

    run(main())


async def reaches(tmp_path: Path, name: str, topic: str) -> bool:
    """Whether a publication by this client or node reaches the target, which subscribes to all."""
    home = Home(tmp_path)
    async with secured_broker(home) as broker:
        target = broker.node(home.admit("target-1", "target"))
        sender = broker.client(name) if name in broker.passwords else broker.node(home.admit(name))
        allowed = TOPICS.request("chat") if name in broker.passwords else TOPICS.node_state(name)
        async with (
            connect(target, client_id="ear") as subscriber,
            connect(sender, client_id="mouth", version="5") as publisher,
        ):
            await subscriber.subscribe(
                ["#"] if topic.startswith("zigbee") else [f"{TOPICS.root}/#", f"{root(TOPICS)}/#"]
            )
            with contextlib.suppress(BrokerLost):
                await publisher.publish(Outgoing(topic, b"lie"))
            await publisher.publish(Outgoing(allowed, b"mark"))
            return topic in await received(subscriber, allowed)


def test_anonymous_connections_are_refused(tmp_path: Path) -> None:
    home, away = Home(tmp_path), Home(tmp_path, cluster="away")
    revoked = home.admit("kitchen")
    home.authority.revoke("kitchen", home.now)

    async def main() -> None:
        async with secured_broker(home) as broker:

            async def refused(address: BrokerAddress) -> str:
                with pytest.raises(BrokerLost) as failure:
                    async with connect(address, client_id="stranger", version="5"):
                        pass
                return str(failure.value)

            assert "ot authorized" in await refused(broker.client("", ""))
            assert "ot authorized" in await refused(broker.client("alice", "guessed"))
            assert "ot authorized" in await refused(broker.client("eve", "x"))
            for credentials in (None, revoked, away.admit("target-1", "target")):
                assert await greeting(broker.node(credentials)) == b""
            assert await greeting(broker.node(home.admit("cellar"))) == b"\x20\x02\x00\x00"
            plain = BrokerAddress.parse(f"mqtt://127.0.0.1:{broker.port}")
            assert await greeting(plain) == b""

    run(main())


async def greeting(address: BrokerAddress) -> bytes:
    """What a broker answers to a CONNECT of MQTT 3.1.1: nothing, or that we are welcome."""
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=address.tls())
    try:
        writer.write(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x0a\x00\x01x")
        return await reader.read(4)
    except OSError:
        return b""
    finally:
        writer.close()


# paho leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_broker_with_another_certificate_is_not_used(tmp_path: Path) -> None:
    home = Home(tmp_path)

    async def main() -> None:
        async with secured_broker(home) as broker:
            (home.folder / "ca.pem").write_text(
                Home(tmp_path, cluster="away").authority.trust_list(home.now).authorities
            )
            with pytest.raises(BrokerLost, match="CERTIFICATE_VERIFY_FAILED"):
                async with connect(broker.client("alice"), client_id="alice"):
                    pass

    run(main())


def test_clients_keep_their_passwords_when_others_are_added(tmp_path: Path) -> None:
    home = Home(tmp_path)
    key, chain = home.authority.issue_broker(["b"], home.now)
    folder = tmp_path / "broker"

    def write(*clients: str) -> dict[str, str]:
        return write_configuration(
            folder, BrokerFiles(TOPICS, key, chain, "", "", ["target-1"], clients)
        )

    assert set(write("alice")) == {"alice"}
    before = (folder / "passwords").read_text()
    assert set(write("alice", "bob")) == {"bob"}
    assert (folder / "passwords").read_text().startswith(before)
    assert "user alice" in (folder / "clients.acl").read_text()
    assert ssl.PEM_cert_to_DER_cert((folder / "broker.pem").read_text())
