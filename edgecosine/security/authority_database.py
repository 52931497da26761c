"""The authority's database: keys, invitations, certificates and revocations.

One SQLite file, which the command line and the endpoint use at the same time, in transactions.
Times are seconds since 1970.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgecosine.protocol.wire.messages import Role

_BUSY_S: Final = 5.0
_SCHEMA: Final = """
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE authority (
    name TEXT PRIMARY KEY, key TEXT NOT NULL, certificate TEXT NOT NULL, cross TEXT NOT NULL,
    made_at INTEGER NOT NULL
);
CREATE TABLE invitation (
    digest BLOB PRIMARY KEY, role TEXT NOT NULL, node_id TEXT NOT NULL, expires_at INTEGER NOT NULL,
    used_by TEXT NOT NULL DEFAULT ''
);
CREATE TABLE certificate (
    serial TEXT PRIMARY KEY, node_id TEXT NOT NULL, role TEXT NOT NULL, issuer TEXT NOT NULL,
    not_after INTEGER NOT NULL, revoked_at INTEGER
);
INSERT INTO fact VALUES ('revision', '1');
"""


@dataclass(frozen=True, slots=True)
class AuthorityRow:
    """A signer; PEM texts, `cross` empty for the first one."""

    name: str
    key: str
    certificate: str
    cross: str


@dataclass(frozen=True, slots=True)
class Invitation:
    """`node_id` is empty when the node may choose its name, `used_by` until it has."""

    role: Role
    node_id: str
    expires_at: int
    used_by: str


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """A node's certificate."""

    serial: int
    node_id: str
    role: Role
    issuer: str
    not_after: int
    revoked_at: int | None


class AuthorityDatabase:
    """The open file, inside one transaction; made by `reading` or `writing`."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def fact(self, name: str) -> str:
        """A setting; empty when there is none."""
        row = self._database.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def set_fact(self, name: str, value: str) -> None:
        """Store a setting."""
        self._database.execute("REPLACE INTO fact VALUES (?, ?)", (name, value))

    def revise(self) -> None:
        """Increase the revision after a change of the trust list."""
        self.set_fact("revision", str(self.revision + 1))

    @property
    def revision(self) -> int:
        """Number of the trust list; grows with every change."""
        return int(self.fact("revision"))

    def authorities(self) -> list[AuthorityRow]:
        """All trusted authorities, the current signer last."""
        query = "SELECT name, key, certificate, cross FROM authority ORDER BY made_at, rowid"
        return [AuthorityRow(*row) for row in self._database.execute(query)]

    def add_authority(self, row: AuthorityRow, made_at: int) -> None:
        """Add an authority, which becomes the signer."""
        self._database.execute(
            "INSERT INTO authority VALUES (?, ?, ?, ?, ?)",
            (row.name, row.key, row.certificate, row.cross, made_at),
        )

    def drop_authority(self, name: str) -> None:
        """Delete an authority, its key and its certificates."""
        self._database.execute("DELETE FROM authority WHERE name = ?", (name,))
        self._database.execute("DELETE FROM certificate WHERE issuer = ?", (name,))
        self._database.execute("UPDATE authority SET cross = ''")

    def add_invitation(self, digest: bytes, role: Role, node_id: str, expires_at: int) -> None:
        """Store an invitation under its secret's digest."""
        self._database.execute(
            "INSERT INTO invitation (digest, role, node_id, expires_at) VALUES (?, ?, ?, ?)",
            (digest, role, node_id, expires_at),
        )

    def invitation(self, digest: bytes) -> Invitation | None:
        """The invitation of a secret with this digest."""
        query = "SELECT role, node_id, expires_at, used_by FROM invitation WHERE digest = ?"
        row = self._database.execute(query, (digest,)).fetchone()
        return Invitation(*row) if row else None

    def use_invitation(self, digest: bytes, node_id: str) -> None:
        """Mark an invitation as used."""
        query = "UPDATE invitation SET used_by = ? WHERE digest = ?"
        self._database.execute(query, (node_id, digest))

    def forget_invitations(self, before: int) -> None:
        """Delete invitations that expired before a time."""
        self._database.execute("DELETE FROM invitation WHERE expires_at < ?", (before,))

    def certificates(self) -> list[CertificateRow]:
        """All stored certificates, oldest first."""
        query = (
            "SELECT serial, node_id, role, issuer, not_after, revoked_at FROM certificate "
            "ORDER BY rowid"
        )
        rows = self._database.execute(query)
        return [CertificateRow(int(serial, 16), *rest) for serial, *rest in rows]

    def add_certificate(self, row: CertificateRow) -> None:
        """Store an issued certificate."""
        values = (f"{row.serial:x}", row.node_id, row.role, row.issuer, row.not_after, None)
        self._database.execute("INSERT INTO certificate VALUES (?, ?, ?, ?, ?, ?)", values)

    def revoke(self, node_id: str, now: int) -> int:
        """Revoke a node's certificates; returns their number."""
        query = "UPDATE certificate SET revoked_at = ? WHERE node_id = ? AND revoked_at IS NULL"
        return self._database.execute(query, (now, node_id)).rowcount

    def forget_certificates(self, before: int) -> None:
        """Delete certificates that expired before a time."""
        self._database.execute("DELETE FROM certificate WHERE not_after < ?", (before,))


def make_database(path: Path) -> None:
    """Create an empty database that only its owner may read."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    with closing(sqlite3.connect(path)) as database:
        database.executescript(_SCHEMA)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[AuthorityDatabase]:
    """A read transaction."""
    with _transaction(path, "BEGIN") as database:
        yield database


@contextlib.contextmanager
def writing(path: Path) -> Iterator[AuthorityDatabase]:
    """A write transaction; other writers wait for it."""
    with _transaction(path, "BEGIN IMMEDIATE") as database:
        yield database


@contextlib.contextmanager
def _transaction(path: Path, begin: str) -> Iterator[AuthorityDatabase]:
    address = f"{path.absolute().as_uri()}?mode=rw"  # a missing file is not created
    with closing(
        sqlite3.connect(address, uri=True, timeout=_BUSY_S, isolation_level=None)
    ) as database:
        database.execute(begin)
        try:
            yield AuthorityDatabase(database)
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")
