"""Links under TLS with certificates on both sides, and the peers that are refused."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from edgecosine.discovery.peer import Address
from edgecosine.errors import (
    ConfigError,
    LinkError,
    LinkLost,
    PeerFlooded,
    PeerMismatched,
    PeerRefused,
)
from edgecosine.node.links.heartbeat import Timing
from edgecosine.node.links.link import Link, LinkSettings
from edgecosine.node.links.link_policy import LinkPolicy
from edgecosine.node.links.listener import Listener, connect, listen
from edgecosine.node.links.peer_budget import BURST_MESSAGES
from edgecosine.protocol.wire.messages import Release
from edgecosine.security.trust import listening_context, unverified_context
from tests.node.links.wire_fixtures import (
    LOCALHOST,
    draft_for,
    drafter_settings,
    logbook,
    request,
    run,
    target_settings,
)
from tests.security.cluster_home import Home

SHORT = Timing(heartbeat_s=30.0, handshake_s=0.5, linger_s=0.2)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@asynccontextmanager
async def secured(
    settings: LinkSettings, max_unfinished: int = 32
) -> AsyncIterator[tuple[Listener, asyncio.Queue[Link]]]:
    """A listener whose TLS handshakes run in a task group."""
    ready: asyncio.Queue[Link] = asyncio.Queue()
    async with asyncio.TaskGroup() as group:
        listener = await listen(
            LOCALHOST, settings, ready.put_nowait, group=group, max_unfinished=max_unfinished
        )
        try:
            yield listener, ready
        finally:
            listener.close()


def test_nodes_of_one_cluster_link(home: Home) -> None:
    async def main() -> None:
        drafter = drafter_settings(guard=home.guard("drafter-1"))
        target = target_settings(guard=home.guard("target-1", "target"))
        async with secured(drafter) as (listener, ready):
            link = await connect(listener.addresses[0], target)
            assert await link.ask(request(1)) == draft_for(request(1))
            their_end = await ready.get()
            link.close("done")
            assert str(await their_end.wait_closed()) == "the peer refused: done"
            await link.wait_closed()

    run(main())


def test_node_of_another_cluster_is_not_linked(home: Home, tmp_path: Path) -> None:
    away = Home(tmp_path, cluster="away").guard("target-1", "target")

    async def main() -> None:
        async with secured(drafter_settings(guard=home.guard("drafter-1"))) as (listener, ready):
            with pytest.raises(PeerRefused, match="its certificate is not accepted"):
                await connect(listener.addresses[0], target_settings(guard=away))
            assert ready.empty()

    run(main())


def test_plain_dialler_of_a_tls_listener_is_reported_on_both_sides(home: Home) -> None:
    async def main() -> None:
        drafter = drafter_settings(guard=home.guard("drafter-1"))
        with logbook() as log:
            async with secured(drafter) as (listener, ready):
                with pytest.raises(LinkLost, match="it may accept TLS only; give this node cred"):
                    await connect(listener.addresses[0], target_settings())
                await log.wait_for_line(
                    "connection rejected: from=127.0.0.1 reason=it is unencrypted, this node"
                )
                assert ready.empty()

    run(main())


def test_tls_dialler_of_a_plain_listener_is_reported_on_both_sides(home: Home) -> None:
    async def main() -> None:
        with logbook() as log:
            async with secured(drafter_settings()) as (listener, _):
                target = target_settings(guard=home.guard("target-1", "target"))
                with pytest.raises(PeerRefused, match="is unencrypted, this node requires TLS"):
                    await connect(listener.addresses[0], target)
                await log.wait_for_line("reason=the peer speaks TLS, this node plain text")

    run(main())


def test_dialler_without_certificate_gets_the_reason_after_its_handshake(home: Home) -> None:
    naked = replace(home.admit("naked", "target").trust(), dialling=unverified_context())

    async def main() -> None:
        drafter = drafter_settings(guard=home.guard("drafter-1"))
        with logbook() as log:
            async with secured(drafter) as (listener, ready):
                with pytest.raises(LinkError, match="reject this node's certificate"):
                    await connect(listener.addresses[0], target_settings(guard=LinkPolicy(naked)))
                await log.wait_for_line("it has no certificate")
                assert ready.empty()

    run(main())


def test_peer_with_a_name_not_in_its_certificate_is_refused(home: Home) -> None:
    async def main() -> None:
        drafter = drafter_settings(guard=home.guard("drafter-1"))
        with logbook() as log:
            async with secured(drafter) as (listener, ready):
                guard = home.guard("target-1", "target")
                with pytest.raises(PeerRefused, match="certificate is that of target target-1"):
                    await connect(
                        listener.addresses[0], target_settings(guard=guard, node_id="target-2")
                    )
                await log.wait_for_line("is this a copied identity?")
                assert ready.empty()

    run(main())


def test_certificate_of_a_drafter_is_refused_for_a_target(home: Home) -> None:
    async def main() -> None:
        drafter = drafter_settings(guard=home.guard("drafter-1"))
        async with secured(drafter) as (listener, ready):
            posing = target_settings(guard=home.guard("target-1", "drafter"))
            with pytest.raises(PeerRefused, match="certificate is that of drafter target-1"):
                await connect(listener.addresses[0], posing)
            assert ready.empty()

    run(main())


def test_listener_with_a_name_not_in_its_certificate_is_refused(home: Home) -> None:
    async def main() -> None:
        drafter = drafter_settings(guard=home.guard("drafter-1"), node_id="drafter-2")
        async with secured(drafter) as (listener, ready):
            target = target_settings(guard=home.guard("target-1", "target"))
            with pytest.raises(PeerMismatched, match="greets as drafter drafter-2"):
                await connect(listener.addresses[0], target)
            assert ready.empty()

    run(main())


def test_only_the_revoked_node_is_refused_at_either_end(home: Home) -> None:
    target, drafter = home.admit("target-1", "target"), home.admit("drafter-1")
    revoked = home.admit("drafter-2")
    home.authority.revoke("drafter-2", home.now)
    informed = LinkPolicy(home.tell(target).trust())

    async def main() -> None:
        for node_id, credentials in (("drafter-1", drafter), ("drafter-2", revoked)):
            settings = drafter_settings(guard=LinkPolicy(credentials.trust()), node_id=node_id)
            async with secured(settings) as (listener, _):
                dialled = connect(listener.addresses[0], target_settings(guard=informed))
                if node_id == "drafter-1":
                    (await dialled).abort("seen")
                else:
                    with pytest.raises(PeerMismatched, match="drafter-2 was revoked"):
                        await dialled
        async with secured(target_settings(guard=informed)) as (listener, ready):
            address = listener.addresses[0]
            settings = drafter_settings(guard=LinkPolicy(revoked.trust()), node_id="drafter-2")
            with pytest.raises(PeerRefused, match="drafter-2 was revoked"):
                await connect(address, settings)
            assert ready.empty()
            link = await connect(address, drafter_settings(guard=LinkPolicy(drafter.trust())))
            link.abort("seen")

    run(main())


def test_certificates_of_broker_and_ca_server_are_refused_for_nodes(home: Home) -> None:
    key, chain = home.authority.issue_broker(["127.0.0.1"], home.now)
    target = target_settings(guard=home.guard("target-1", "target"))
    drafter = home.admit("drafter-1")

    async def main() -> None:
        for pem in (key + chain, home.authority.issue_endpoint(home.now)):
            posing = home.folder / "posing.pem"
            posing.write_text(pem)
            context = listening_context(posing, drafter.authorities_pem)
            guard = LinkPolicy(replace(drafter.trust(), listening=context))
            async with secured(drafter_settings(guard=guard)) as (listener, ready):
                with pytest.raises(PeerMismatched, match="no certificate of a node"):
                    await connect(listener.addresses[0], target)
                assert ready.empty()

    run(main())


def test_tls_is_1_3_and_sessions_are_not_resumed(home: Home) -> None:
    trust = home.admit("target-1", "target").trust()
    for context in (trust.listening, trust.dialling):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
    assert trust.listening.num_tickets == 0


def test_unfinished_tls_handshake_times_out(home: Home) -> None:
    async def main() -> None:
        drafter = drafter_settings(timing=SHORT, guard=home.guard("drafter-1"))
        async with secured(drafter, max_unfinished=2) as (listener, ready):
            silent = [await asyncio.open_connection(*listener.addresses[0]) for _ in range(8)]
            for reader, _ in silent:
                assert await reader.read() == b""
            target = target_settings(guard=home.guard("target-1", "target"))
            link = await connect(listener.addresses[0], target)
            (await ready.get()).abort("seen")
            link.abort("seen")
            for _, writer in silent:
                writer.close()

    run(main())


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "192.0.2.7"])  # noqa: S104
def test_only_loopback_is_accepted_without_credentials(host: str) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="edgecosine cluster init"):
            await listen(Address(host, 0), drafter_settings(), lambda _: None)
        with pytest.raises(LinkLost, match="beyond this machine"):
            await connect(Address("192.0.2.7", 9), target_settings())

    run(main())


def test_insecure_accepts_all_peers() -> None:
    async def main() -> None:
        settings = drafter_settings(guard=LinkPolicy(is_insecure=True))
        listener = await listen(Address("", 0), settings, lambda _: None)
        link = await connect(Address("127.0.0.1", listener.port), target_settings())
        link.abort("seen")
        await link.wait_closed()
        listener.close()

    run(main())


def test_flooding_peer_is_disconnected_under_tls(home: Home) -> None:
    async def main() -> None:
        drafter = drafter_settings(guard=home.guard("drafter-1"), timing=SHORT)
        target = target_settings(guard=home.guard("target-1", "target"), timing=SHORT)
        async with secured(drafter) as (listener, ready):
            link = await connect(listener.addresses[0], target)
            their_end = await ready.get()
            for _ in range(20 * BURST_MESSAGES):
                link.send(Release("a/b"))
            assert isinstance(await their_end.wait_closed(), PeerFlooded)
            await link.wait_closed()

    run(main())
