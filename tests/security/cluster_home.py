"""A cluster's authority and its nodes' credentials, in a test's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from edgecosine.node.links.link_policy import LinkPolicy
from edgecosine.protocol.wire.messages import Role
from edgecosine.security.authority import Authority
from edgecosine.security.credentials import Credentials, Enrolling


@dataclass
class Home:
    """An authority and its nodes; `now` is the time of all its actions."""

    folder: Path
    cluster: str = "lab"
    listen: str = "127.0.0.1:0"
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self.authority = Authority.make(
            self.folder / self.cluster / "ca", self.cluster, self.listen, self.now
        )

    def secret(self, role: Role = "drafter", minutes: int = 15, node_id: str = "") -> bytes:
        """Of an invitation."""
        return self.authority.invite(role, timedelta(minutes=minutes), self.now, node_id)

    def admit(
        self, node_id: str, role: Role = "drafter", endpoints: Sequence[str] = ()
    ) -> Credentials:
        """A node's credentials, as joining leaves them."""
        enrolling = Enrolling()
        secret = self.secret(role)
        admission = self.authority.admit(secret, node_id, enrolling.request, self.now)
        return enrolling.store(self.place(node_id), admission, endpoints)

    def place(self, node_id: str) -> Path:
        """Where a node's credentials lie."""
        return self.folder / self.cluster / node_id

    def guard(self, node_id: str, role: Role = "drafter") -> LinkPolicy:
        """The guard of a new node."""
        return LinkPolicy(self.admit(node_id, role).trust())

    def tell(self, credentials: Credentials) -> Credentials:
        """The credentials with the authority's current trust list."""
        return credentials.with_trust(self.authority.trust_list(self.now))
