"""Joining, renewing and revoking over real sockets and real TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edgecosine.backoff import Backoff
from edgecosine.discovery.peer import Address
from edgecosine.errors import EnrolmentError, EnrolmentRefused
from edgecosine.node.credentials.ca_client import join, renew, watch
from edgecosine.node.credentials.ca_server import MAX_UNAUTHENTICATED, CaServer
from edgecosine.node.credentials.renewal import CredentialRenewal
from edgecosine.node.links.link_policy import LinkPolicy
from edgecosine.security.certificates import Signer
from edgecosine.security.credentials import Credentials
from edgecosine.security.enrolment import MAX_REQUEST_BYTES, Introduce, read_answer, write_line
from edgecosine.security.files import write_private
from edgecosine.security.join_token import JoinToken
from edgecosine.security.trust import unverified_context
from tests.node.links.test_peers import living
from tests.node.links.wire_fixtures import (
    Logbook,
    draft_for,
    drafter_settings,
    logbook,
    request,
    run,
    target_settings,
)
from tests.security.cluster_home import Home

EAGER = Backoff(0.01, 0.05)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@asynccontextmanager
async def served(home: Home) -> AsyncIterator[str]:
    """The authority's endpoint inside the block; gives its address."""
    endpoint = CaServer(home.authority, now=lambda: home.now, watch_s=5.0)
    await endpoint.open()
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(endpoint.run(), name="endpoint")
        try:
            yield str(endpoint.addresses[0])
        finally:
            serving.cancel()
            endpoint.close()


@asynccontextmanager
async def kept(
    credentials: Credentials, guard: LinkPolicy, home: Home
) -> AsyncIterator[CredentialRenewal]:
    """A node's upkeep inside the block."""
    upkeep = CredentialRenewal(credentials, guard, now=lambda: home.now, backoff=EAGER)
    async with asyncio.TaskGroup() as group:
        life = group.create_task(upkeep.run(), name="upkeep")
        try:
            yield upkeep
        finally:
            life.cancel()


def token(home: Home, secret: bytes | None = None) -> JoinToken:
    return JoinToken("lab", home.authority.fingerprint, secret or home.secret(), [])


def test_invited_node_joins_without_sending_its_key(home: Home) -> None:
    async def main() -> None:
        async with served(home) as address:
            place = home.place("kitchen")
            credentials = await join(token(home), "kitchen", place, ["127.0.0.1:1", address])
            assert credentials.identity.uri == "urn:edgecosine:node:lab:drafter:kitchen"
            assert credentials.endpoints == ("127.0.0.1:1", address)
            credentials.trust()
        database = (home.authority.folder / "ledger.db").read_bytes()
        key = credentials.node_file.read_text().split("-----")[2].split("\n")[1]
        assert key.encode() not in database

    run(main())


def test_wrong_used_and_expired_tokens_are_refused_with_the_reason(home: Home) -> None:
    async def main() -> None:
        async with served(home) as address:

            async def refusal(join_token: JoinToken) -> str:
                with pytest.raises(EnrolmentRefused) as failure:
                    await join(join_token, "cellar", home.place("cellar"), [address])
                return str(failure.value)

            assert "made no such token" in await refusal(token(home, bytes(16)))
            used, late = token(home), token(home)
            await join(used, "kitchen", home.place("kitchen"), [address])
            assert "used already, by kitchen" in await refusal(used)
            home.now += timedelta(minutes=16)
            assert "has expired" in await refusal(late)
            assert not Credentials.are_in(home.place("cellar"))

    run(main())


def test_token_admits_one_of_two_concurrent_nodes(home: Home) -> None:
    async def main() -> list[object]:
        join_token = token(home)

        async def attempt(name: str) -> object:
            try:
                return (await join(join_token, name, home.place(name), [address])).identity.node_id
            except EnrolmentRefused as error:
                return error

        async with served(home) as address, asyncio.TaskGroup() as group:
            tasks = [group.create_task(attempt(f"n{number}")) for number in range(5)]
        return [task.result() for task in tasks]

    results = run(main())
    assert sum(isinstance(result, str) for result in results) == 1


def test_false_authority_gets_neither_secret_nor_node(home: Home, tmp_path: Path) -> None:
    """It has its own authority, and, worse, shows the true one's certificate as its own."""
    impostor = Home(tmp_path, cluster="impostor")
    asked: list[str] = []

    async def main() -> None:
        join_token = token(home)
        async with served(impostor) as address:
            with pytest.raises(EnrolmentError, match="another endpoint answers"):
                await join(join_token, "kitchen", home.place("kitchen"), [address])

            true = home.authority.trust_list(home.now)
            impostor.authority.trust_list = lambda now: true  # type: ignore[method-assign]
            impostor.authority.admit = (  # type: ignore[method-assign]
                lambda *_: asked.append("join")
            )
            with pytest.raises(EnrolmentError, match="certificate is not accepted"):
                await join(join_token, "kitchen", home.place("kitchen"), [address])
        assert asked == []
        async with served(home) as address:
            await join(join_token, "kitchen", home.place("kitchen"), [address])

    run(main())


@pytest.mark.parametrize("name", ["enrolment.edgecosine", "kitchen"])
def test_node_cannot_act_as_the_ca_server(home: Home, name: str) -> None:
    """Not even one that was given the endpoint's name as its own."""
    rogue = home.admit(name).trust()
    join_token = token(home)
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        heard.append(line)
        if line == write_line(Introduce()):
            writer.write(write_line(home.authority.trust_list(home.now)))
        writer.close()

    async def main() -> None:
        context = rogue.listening
        context.verify_mode = ssl.CERT_OPTIONAL
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(EnrolmentError, match="certificate is not accepted"):
            await join(join_token, "cellar", home.place("cellar"), [f"127.0.0.1:{port}"])
        server.close()

    run(main())
    assert heard == [write_line(Introduce())]


def test_renewal_needs_the_nodes_own_certificate(home: Home) -> None:
    async def main() -> None:
        async with served(home) as address:
            credentials = await join(token(home), "kitchen", home.place("kitchen"), [address])
            renewed = await renew(credentials)
            assert renewed.identity == credentials.identity
            other = replace(
                credentials, directory=home.admit("other").directory, endpoints=(address,)
            )
            assert (await renew(other)).identity.node_id == "other"
            home.authority.revoke("kitchen", home.now)
            with pytest.raises(EnrolmentRefused, match="kitchen was revoked"):
                await renew(renewed)
            with pytest.raises(EnrolmentRefused, match="kitchen was revoked"):
                await watch(renewed)

    run(main())


def test_peer_without_certificate_can_only_enrol(home: Home) -> None:
    async def main() -> None:
        async with served(home) as address:
            host, _, port = address.rpartition(":")

            async def answer_to(line: bytes) -> bytes:
                reader, writer = await asyncio.open_connection(
                    host, int(port), ssl=unverified_context()
                )
                writer.write(line)
                answer = await reader.read()
                writer.close()
                return answer

            assert b"needs a node" in await answer_to(b'{"type":"watch","known":0}\n')
            assert b"needs a node" in await answer_to(b'{"type":"renew","signing_request":""}\n')
            for garbage in (b"\n", b"{}\n", b"[1]\n", b"\xff" * 9 + b"\n", b'{"x":' * 3000 + b"\n"):
                assert await answer_to(garbage) == b""
            assert await answer_to(b"x" * (2 * MAX_REQUEST_BYTES)) == b""
            read_answer(await answer_to(write_line(Introduce())))

    run(main())


@pytest.mark.parametrize("is_greeted", [True, False], ids=["half a line", "no TLS"])
def test_many_connections_to_the_ca_server_do_not_block_an_enrolment(
    home: Home, is_greeted: bool
) -> None:
    async def main() -> None:
        async with served(home) as address:
            member = home.admit("kitchen", "drafter", [address])
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(watch(member), name="watching")
                host, _, port = address.rpartition(":")
                tls = unverified_context() if is_greeted else None
                connections = []
                with logbook() as book:
                    for _ in range(MAX_UNAUTHENTICATED + 8):
                        connections.append(await asyncio.open_connection(host, int(port), ssl=tls))
                        if is_greeted:
                            connections[-1][1].write(b'{"type":')
                    joined = await join(token(home), "attic", home.folder / "attic", [address])
                assert joined.identity.node_id == "attic"
                assert sum("too many unauthenticated" in line for line in book.lines) == 1
                assert await connections[0][0].read() == b""
                assert (await watching).revision >= member.revision
                for _, writer in connections:
                    writer.close()

    run(main())


def test_only_the_revoked_node_is_dropped_from_a_running_cluster(home: Home) -> None:
    async def main() -> None:
        async with served(home) as address:
            target = home.admit("target-1", "target", [address])
            guards = {name: home.guard(name) for name in ("drafter-1", "drafter-2")}
            target_guard = LinkPolicy(target.trust())
            settings = target_settings(guard=target_guard)
            async with (
                living(settings) as node,
                kept(target, target_guard, home),
            ):
                static: list[Address] = list(await node.peers.listening())
                async with (
                    living(drafter_settings(guard=guards["drafter-1"]), static),
                    living(
                        drafter_settings(guard=guards["drafter-2"], node_id="drafter-2"), static
                    ) as rogue,
                ):
                    await node.until_linked("drafter-1", "drafter-2")
                    link = node.peers.links["drafter-1"]
                    home.authority.revoke("drafter-2", home.now)
                    await node.until_linked("drafter-1")
                    await rogue.until(
                        lambda: any(
                            "drafter-2 was revoked" in e.reason for e in rogue.peers.explain()
                        )
                    )
                    assert node.peers.links["drafter-1"] is link
                    assert await link.ask(request(1)) == draft_for(request(1))
                    assert ("lost", "drafter-1") not in node.events

    run(main())


def test_renewal_and_a_new_authority_key_end_no_link(home: Home) -> None:
    async def main() -> None:
        async with served(home) as address:
            target = home.admit("target-1", "target", [address])
            drafter = home.admit("drafter-1", endpoints=[address])
            ours, theirs = LinkPolicy(target.trust()), LinkPolicy(drafter.trust())
            with logbook() as log:
                async with (
                    living(target_settings(guard=ours)) as node,
                    kept(target, ours, home) as target_upkeep,
                    kept(drafter, theirs, home) as drafter_upkeep,
                ):
                    static = list(await node.peers.listening())
                    async with living(drafter_settings(guard=theirs), static) as other:
                        await node.until_linked("drafter-1")
                        link = node.peers.links["drafter-1"]
                        before = link.peercert
                        name = home.authority.rotate(home.now)
                        for upkeep in (target_upkeep, drafter_upkeep):
                            await until(log, upkeep, name)
                        assert node.peers.links["drafter-1"] is link
                        assert await link.ask(request(1)) == draft_for(request(1))

                        # The next link is made with the new certificates.
                        link.abort("once more")
                        await node.until(lambda: node.events.count(("joined", "drafter-1")) == 2)
                        await other.until_linked("target-1")
                        after = node.peers.links["drafter-1"].peercert
                        assert before is not None
                        assert after is not None
                        assert after["issuer"] != before["issuer"]

                        home.authority.finish_rotation(home.now)
                        await log.wait_for_line("revision=3")
                        link = node.peers.links["drafter-1"]
                        assert await link.ask(request(2)) == draft_for(request(2))

    run(main())


def test_copied_identity_is_named(home: Home) -> None:
    async def main() -> None:
        async with living(target_settings(guard=home.guard("target-1", "target"))) as node:
            static = list(await node.peers.listening())
            copied = LinkPolicy(home.admit("drafter-1").trust())
            with logbook() as log:
                async with living(drafter_settings(guard=copied, incarnation=2), static):
                    await node.until_linked("drafter-1")
                    link = node.peers.links["drafter-1"]
                    async with living(drafter_settings(guard=copied, incarnation=1), static):
                        line = await log.wait_for_line("two processes of one node: peer=drafter-1")
                        assert "edgecosine cluster revoke drafter-1" in line
                        await log.wait_for_line("is its identity copied?")
                        assert node.peers.links["drafter-1"] is link

    run(main())


async def until(log: Logbook, upkeep: CredentialRenewal, issuer: str) -> None:
    """Wait until a node's certificate is by this authority."""
    while upkeep.credentials.issuer != issuer:
        await log.next_line()


def test_certificate_is_renewed_before_it_expires(tmp_path: Path) -> None:
    async def main() -> None:
        today = datetime.now(UTC)
        home = Home(tmp_path, now=today - timedelta(days=22))
        async with served(home) as address:
            credentials = home.admit("drafter-1", endpoints=[address])
            home.now = today
            guard = LinkPolicy(credentials.trust())
            before = guard.trust
            with logbook() as log:
                async with kept(credentials, guard, home) as upkeep:
                    await log.wait_for_line("certificate renewed: until")
                    assert upkeep.credentials.not_after > credentials.not_after
                    assert guard.trust is not before
                    assert Credentials.load(credentials.directory) == upkeep.credentials

    run(main())


def test_unreachable_authority_is_logged_once_and_waited_for(home: Home) -> None:
    async def main() -> None:
        async with served(home) as address:
            pass
        credentials = home.admit("drafter-1", endpoints=[address])
        home.authority.revoke("drafter-1", home.now)
        home.admit("drafter-1")
        home.listen = address
        guard = LinkPolicy(credentials.trust())
        with logbook() as log:
            async with kept(credentials, guard, home):
                await log.wait_for_line(
                    "cannot refresh the trust list: reason=no answer from the cluster's authority"
                )
                lines = [line for line in log.lines if "cannot refresh" in line]
                assert len(lines) == 1

    run(main())


def test_signer_of_another_cluster_cannot_revoke_here(home: Home, tmp_path: Path) -> None:
    credentials = home.admit("kitchen")
    foreign = Signer.new("lab", home.now)
    trusted = home.authority.trust_list(home.now)
    write_private(credentials.directory / "revoked.pem", foreign.revocation_list([1], 9, home.now))
    with pytest.raises(EnrolmentError, match="not signed"):
        Credentials.load(credentials.directory).trust()
    assert trusted.revoked
