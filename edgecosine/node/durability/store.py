"""The journal on disk: an SQLite file in WAL mode.

Each batch of statements is one transaction. What is written survives the death of the process, and
with `is_lasting` a loss of power. The file holds prompts and answers, so only its owner may read
it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edgecosine.errors import ConfigError, JournalLost
from edgecosine.node.durability.boot_clock import BootTime

SCHEMA_VERSION = 1
FILE_NAME = "journal.sqlite"

Statement = tuple[str, tuple[object, ...]]

_SCHEMA = (
    """
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, model TEXT NOT NULL,
        moment BLOB NOT NULL, ticket BLOB NOT NULL, request BLOB NOT NULL,
        num_starts INTEGER NOT NULL DEFAULT 0, num_rounds_then INTEGER NOT NULL DEFAULT 0
    )
    """,
    """
    CREATE TABLE rounds (
        key TEXT NOT NULL, choice INTEGER NOT NULL, position INTEGER NOT NULL,
        committed BLOB NOT NULL, PRIMARY KEY (key, choice, position)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE answers (
        number INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, digest BLOB NOT NULL,
        state TEXT NOT NULL, kept_until REAL NOT NULL, is_delivered INTEGER NOT NULL,
        num_bytes INTEGER NOT NULL, final BLOB NOT NULL, parts BLOB NOT NULL
    )
    """,
)

_BOOTS = """
    CREATE TABLE IF NOT EXISTS boots (
        boot TEXT PRIMARY KEY, wall_s REAL NOT NULL, boot_s REAL NOT NULL
    )
"""
_STARTS = "CREATE TABLE IF NOT EXISTS starts (number INTEGER PRIMARY KEY, count INTEGER NOT NULL)"
"""Tables outside the schema version: versions that do not know them ignore them."""


class JournalStore:
    """One file, locked by one process. Calls block, and only one thread calls at a time.

    Raises ConfigError if the directory cannot be used, or if another node uses it.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        self._cleanup = contextlib.ExitStack()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock(directory)
            self.damage: Path | None = None
            """Where an unreadable file was moved."""
            self._database = self._open()
        except OSError as error:
            self.close()
            raise ConfigError("state_dir", str(directory), f"a writable directory ({error})") from (
                error
            )
        except BaseException:
            self.close()
            raise
        self._is_lasting: bool | None = None

    def __repr__(self) -> str:
        return f"<JournalStore {self.path}>"

    def write(self, statements: Iterable[Statement], *, is_lasting: bool) -> None:
        """Run all statements or none, durably; with `is_lasting` they survive a loss of power.

        Raises JournalLost.
        """
        try:
            if is_lasting is not self._is_lasting:
                mode = "FULL" if is_lasting else "NORMAL"
                self._database.execute(f"PRAGMA synchronous = {mode}")
                self._is_lasting = is_lasting
            self._database.execute("BEGIN IMMEDIATE")
            for sql, values in statements:
                self._database.execute(sql, values)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
            raise JournalLost(f"{self.path}: {error}") from error

    def read(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query.

        Raises JournalLost.
        """
        try:
            return self._database.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise JournalLost(f"{self.path}: {error}") from error

    def first_moment(self, now: BootTime) -> BootTime:
        """Return the first moment of this boot that was passed to this method; maybe `now`.

        Raises JournalLost.
        """
        sql = "SELECT wall_s, boot_s FROM boots WHERE boot = ?"
        for wall_s, boot_s in self.read(sql, (now.boot,)):
            return BootTime(wall_s, now.boot, boot_s)
        row = (now.boot, now.wall_s, now.boot_s)
        with contextlib.suppress(JournalLost):
            self.write(
                [("DELETE FROM boots", ()), ("INSERT INTO boots VALUES (?, ?, ?)", row)],
                is_lasting=False,
            )
        return now

    def count_start(self) -> int:
        """Count a start of a node with this file, and return the number of starts so far.

        Raises JournalLost.
        """
        sql = (
            "INSERT INTO starts VALUES (1, 1) ON CONFLICT (number) DO UPDATE SET count = count + 1"
        )
        with contextlib.suppress(JournalLost):
            self.write([(sql, ())], is_lasting=False)
        return sum(count for (count,) in self.read("SELECT count FROM starts"))

    def close(self) -> None:
        """Close and unlock the file."""
        self._cleanup.close()

    def _lock(self, directory: Path) -> None:
        handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._cleanup.callback(os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            allowed = "a directory of its own for each node; another node uses this one"
            raise ConfigError("state_dir", str(directory), allowed) from None

    def _open(self) -> sqlite3.Connection:
        """Return the database; a damaged file is moved aside and replaced by a new one."""
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise OSError(str(error)) from error
            self.damage = self._set_aside()
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        with contextlib.ExitStack() as failing:
            database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            failing.callback(database.close)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            for (result,) in database.execute("PRAGMA quick_check").fetchall():
                if result != "ok":
                    raise sqlite3.DatabaseError(result)
            self._migrate(database)
            database.execute(_BOOTS)
            database.execute(_STARTS)
            failing.pop_all()
        self._cleanup.callback(database.close)
        return database

    def _migrate(self, database: sqlite3.Connection) -> None:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            allowed = f"one that a version of edgecosine up to this one wrote (schema {version})"
            raise ConfigError("state_dir", str(self.path), allowed)
        if version == SCHEMA_VERSION:
            return
        database.execute("BEGIN IMMEDIATE")
        for table in _SCHEMA:
            database.execute(table)
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.execute("COMMIT")

    def _set_aside(self) -> Path:
        aside = self.path.with_name(f"{FILE_NAME}.damaged-{int(time.time())}")
        for suffix in ("", "-wal", "-shm"):
            beside = self.path.with_name(self.path.name + suffix)
            if beside.exists():
                beside.replace(aside.with_name(aside.name + suffix))
        return aside
