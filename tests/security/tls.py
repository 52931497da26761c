"""A TLS handshake in memory."""

from __future__ import annotations

import contextlib
import ssl

from edgecosine.security.identity import PeerCertificate


def agree(
    listening: ssl.SSLContext, dialling: ssl.SSLContext, server_name: str | None = None
) -> PeerCertificate:
    """What the listener learns of the dialler; raises ssl.SSLError when they do not agree."""
    to_listener, to_dialler = ssl.MemoryBIO(), ssl.MemoryBIO()
    dialler = dialling.wrap_bio(to_dialler, to_listener, server_hostname=server_name)
    listener = listening.wrap_bio(to_listener, to_dialler, server_side=True)
    for _ in range(3):
        for end in (dialler, listener):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    certificate = PeerCertificate.of(listener.getpeercert())
    assert certificate is not None
    return certificate
