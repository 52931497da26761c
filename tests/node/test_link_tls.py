"""Links under TLS with certificates on both sides: the same talk, and strangers stay outside."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecosine.errors import LinkError, PeerMismatched
from edgecosine.node.heartbeat import Timing
from edgecosine.node.link import Link
from edgecosine.node.sockets import connect, listen
from tests.node.wire_fixtures import (
    LOCALHOST,
    draft_for,
    drafter_settings,
    request,
    run,
    target_settings,
)

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
SHORT = Timing(heartbeat_s=30.0, handshake_s=0.5, linger_s=0.2)

Contexts = Callable[[str], tuple[ssl.SSLContext, ssl.SSLContext]]


@pytest.fixture
def contexts(tmp_path: Path) -> Contexts:
    """Server and client contexts of the cluster with a given name, each its own authority."""

    def make(cluster: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        key, certificate = tmp_path / f"{cluster}.key", tmp_path / f"{cluster}.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "2",
             "-subj", f"/CN={cluster}", "-keyout", str(key), "-out", str(certificate)],
            check=True, capture_output=True,
        )  # fmt: skip
        made = []
        for purpose in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
            context = ssl.SSLContext(purpose)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(certificate)
            context.load_cert_chain(certificate, key)
            made.append(context)
        return made[0], made[1]

    return make


def test_nodes_of_one_cluster_talk_and_strangers_stay_outside(contexts: Contexts) -> None:
    server, client = contexts("home")
    _, foreign = contexts("away")

    async def main() -> None:
        ready: asyncio.Queue[Link] = asyncio.Queue()
        settings = drafter_settings(timing=SHORT)
        listener = await listen(LOCALHOST, settings, ready.put_nowait, tls=server)
        address = listener.addresses[0]
        for outsider in (foreign, None):
            with pytest.raises(LinkError):
                await connect(address, target_settings(SHORT), tls=outsider)
        with pytest.raises(PeerMismatched, match="cluster lab there, other here"):
            await connect(address, target_settings(SHORT, cluster="other"), tls=client)
        reader, silent = await asyncio.open_connection(*address)
        link = await connect(address, target_settings(), tls=client)
        assert await link.ask(request(1)) == draft_for(request(1))
        their_end = await ready.get()
        link.close("done")
        assert str(await their_end.wait_closed()) == "the peer refused: done"
        await link.wait_closed()
        assert await reader.read() == b""
        silent.close()
        listener.close()

    run(main())
