"""Whom this node links with, now: everybody in the cluster, or, without credentials, this machine.

Trust changes while the node runs; new links are made by the trust of the moment, and those who hold
links are told to look at them again.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final

from edgecosine.errors import ConfigError
from edgecosine.protocol.wire.messages import Hello
from edgecosine.security.trust import Trust

ADVICE: Final = (
    "give this node credentials by `edgecosine cluster init` or `edgecosine cluster join`"
)
_PLAIN_TEXT: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}
)


class LinkPolicy:
    """The node's trust. Without one its links are plain, and stay on this machine unless
    `is_insecure`."""

    def __init__(self, trust: Trust | None = None, *, is_insecure: bool = False) -> None:
        self._trust, self._is_insecure = trust, is_insecure
        self._watchers: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        how = "insecure" if self._is_insecure else "loopback only"
        return f"<LinkPolicy {self._trust.identity.node_id if self._trust else how}>"

    @property
    def trust(self) -> Trust | None:
        """Whom to believe; None without credentials."""
        return self._trust

    def replace(self, trust: Trust) -> None:
        """Believe this from now on."""
        self._trust = trust
        for watcher in self._watchers:
            watcher()

    def on_change(self, watcher: Callable[[], None]) -> None:
        """Have somebody called whenever the trust is another one."""
        self._watchers.append(watcher)

    def objection(self, peercert: Mapping[str, Any] | None, hello: Hello) -> str | None:
        """Why a peer that greets with `hello` is not to be linked."""
        return self._trust.objection(peercert, hello) if self._trust else None

    def doubt(self, peercert: Mapping[str, Any] | None) -> str | None:
        """Why the holder of a certificate is to be linked no more."""
        return self._trust.doubt(peercert) if self._trust else None

    def may_use(self, host: str) -> bool:
        """Whether links may go to, or come in at, this host."""
        return self._trust is not None or self._is_insecure or is_loopback(host)

    def check(self, key: str, value: str, host: str) -> None:
        """Raises ConfigError when a setting would take links beyond this machine unprotected."""
        if not self.may_use(host):
            raise ConfigError(
                key, value, f"an address of this machine (127.0.0.1, ::1) until the links are "
                f"protected: {ADVICE}, or, where you trust the whole network, give --insecure",
            )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, whatever else is on the network."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def explain(error: BaseException) -> str:
    """Why TLS was not agreed, in an operator's words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        if reason in _PLAIN_TEXT:
            return "it speaks plain text, this node TLS: run `edgecosine cluster join` there"
        if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return "it shows no certificate: run `edgecosine cluster join` there"
        if "ALERT_UNKNOWN_CA" in reason:
            return "it does not know this cluster's authority: is it a node of another cluster?"
        if "ALERT" in reason:
            return f"it refuses our certificate: {reason.lower().replace('_', ' ')}"
        return f"no TLS was agreed: {reason.lower().replace('_', ' ')}"
    if isinstance(error, TimeoutError):
        return "it did not finish the TLS handshake in time"
    return f"the connection ended during the TLS handshake: {error or type(error).__name__}"
