"""Which peers a node links with: members of its cluster, or, without credentials, local nodes.

The trust list changes while the node runs: new links use the current one, and watchers are called
so that they check existing links again.
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
    """The node's current trust. Without one, links are unencrypted and limited to loopback unless
    `is_insecure`."""

    def __init__(self, trust: Trust | None = None, *, is_insecure: bool = False) -> None:
        self._trust, self._is_insecure = trust, is_insecure
        self._watchers: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        how = "insecure" if self._is_insecure else "loopback only"
        return f"<LinkPolicy {self._trust.identity.node_id if self._trust else how}>"

    @property
    def trust(self) -> Trust | None:
        """Trusted authorities and revocations; None without credentials."""
        return self._trust

    def replace(self, trust: Trust) -> None:
        """Use another trust from now on, and call all watchers."""
        self._trust = trust
        for watcher in self._watchers:
            watcher()

    def on_change(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` at each change of the trust."""
        self._watchers.append(watcher)

    def objection(self, peercert: Mapping[str, Any] | None, hello: Hello) -> str | None:
        """Why a peer with this certificate and greeting is refused; None if it is accepted."""
        return self._trust.objection(peercert, hello) if self._trust else None

    def doubt(self, peercert: Mapping[str, Any] | None) -> str | None:
        """Why a linked peer is no longer trusted; None if it is."""
        return self._trust.doubt(peercert) if self._trust else None

    def may_use(self, host: str) -> bool:
        """Whether links to this host, or listening at it, are allowed."""
        return self._trust is not None or self._is_insecure or is_loopback(host)

    def check(self, key: str, value: str, host: str) -> None:
        """Raises ConfigError when a setting would allow unencrypted links beyond this machine."""
        if not self.may_use(host):
            raise ConfigError(
                key, value, f"an address of this machine (127.0.0.1, ::1) until the links are "
                f"encrypted: {ADVICE}, or, if you trust the whole network, give --insecure",
            )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether a host is `localhost` or a loopback address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def explain(error: BaseException) -> str:
    """Why a TLS handshake failed, in words for an operator."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        if reason in _PLAIN_TEXT:
            return "it is unencrypted, this node requires TLS: run `edgecosine cluster join` there"
        if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return "it has no certificate: run `edgecosine cluster join` there"
        if "ALERT_UNKNOWN_CA" in reason:
            return "it does not know this cluster's authority: is it a node of another cluster?"
        if "ALERT" in reason:
            return f"it rejects this node's certificate: {reason.lower().replace('_', ' ')}"
        return f"the TLS handshake failed: {reason.lower().replace('_', ' ')}"
    if isinstance(error, TimeoutError):
        return "it did not finish the TLS handshake in time"
    return f"the connection ended during the TLS handshake: {error or type(error).__name__}"
