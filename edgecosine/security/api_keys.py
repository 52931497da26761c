"""The keys of clients that ask over HTTP: one file for each cluster, with hashes only."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from edgecosine.errors import ConfigError
from edgecosine.security.files import check_private, write_private

FILE_NAME: Final = "api-keys.json"
_PREFIX: Final = "ec-"
_KEY_BYTES: Final = 32
_MAX_BYTES: Final = 1 << 20


class _Entry(msgspec.Struct, frozen=True):
    """A key: SHA-256 in hexadecimal, which suffices for a random key, and when it was made."""

    sha256: str
    created: str


class ApiKeys:
    """The keys in one file, read again when the file has changed."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError when the file cannot be read."""
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._entries: dict[str, _Entry] = {}
        self._names: Mapping[str, str] = {}
        self._read()

    def __repr__(self) -> str:
        return f"<ApiKeys {self._path} [{len(self._entries)} keys]>"

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def created(self) -> Mapping[str, str]:
        """When each key was made, by name."""
        self._read()
        return {name: entry.created for name, entry in sorted(self._entries.items())}

    def name_of(self, key: str) -> str | None:
        """The name of a key; None if it is unknown or revoked."""
        self._read()
        return self._names.get(_digest(key))

    def create(self, name: str, created: str) -> str:
        """A new key, which cannot be read again; `created` is a time in ISO form.

        Raises ConfigError when the name is taken.
        """
        self._read()
        if name in self._entries:
            raise ConfigError("name", name, "a name without a key; revoke the one that it has")
        key = _PREFIX + secrets.token_urlsafe(_KEY_BYTES)
        self._write({**self._entries, name: _Entry(_digest(key), created)})
        return key

    def revoke(self, name: str) -> None:
        """Remove a key; running nodes refuse it from now on.

        Raises ConfigError when there is none of this name.
        """
        self._read()
        if name not in self._entries:
            raise ConfigError(
                "name",
                name,
                f"one of {', '.join(self._entries)}"
                if self._entries
                else "no name: there are no keys",
            )
        self._write({known: entry for known, entry in self._entries.items() if known != name})

    def _read(self) -> None:
        try:
            facts = self._path.stat()
        except FileNotFoundError:
            self._stamp, self._entries, self._names = None, {}, {}
            return
        stamp = (facts.st_mtime_ns, facts.st_ino)
        if stamp == self._stamp:
            return
        check_private(self._path)
        try:
            with self._path.open("rb") as file:
                entries = msgspec.json.decode(file.read(_MAX_BYTES), type=dict[str, _Entry])
        except (OSError, msgspec.MsgspecError) as error:
            allowed = f"a readable file of keys ({error})"
            raise ConfigError("http_keys", str(self._path), allowed) from error
        self._stamp, self._entries = stamp, entries
        self._names = {entry.sha256: name for name, entry in entries.items()}

    def _write(self, entries: Mapping[str, _Entry]) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self._path, msgspec.json.encode(entries).decode())
        self._read()


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()
