"""The names under which a node connects to a broker: lasting, and known to nobody else.

A broker gives a connection's place, and the session that it keeps, to whoever comes with its client
id, whatever password or certificate that one has. So an id ends with what only the node knows.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path
from typing import Final, Self

from edgecosine.security.files import write_private

SECRET_FILE: Final = "mqtt-secret"  # noqa: S105 -- its name
_SECRET_BYTES: Final = 16
_HEX: Final = re.compile(rb"[0-9a-f]{32}\n")


class ClientIds:
    """Client ids made with one secret, which is drawn unless it is given."""

    def __init__(self, secret: bytes = b"") -> None:
        self._secret = secret or secrets.token_bytes(_SECRET_BYTES)

    def __repr__(self) -> str:
        return "<ClientIds>"

    @classmethod
    def kept_in(cls, directory: Path) -> Self:
        """Those that a node had in its former lives; the secret is drawn in the first.

        Raises OSError when the directory cannot be used.
        """
        path = directory / SECRET_FILE
        if path.exists():
            with path.open("rb") as file:
                known = file.read(2 * _SECRET_BYTES + 2)
            if _HEX.fullmatch(known):
                return cls(bytes.fromhex(known.decode()))
        else:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = secrets.token_bytes(_SECRET_BYTES)
        write_private(path, secret.hex() + "\n")
        return cls(secret)

    def of(self, name: str) -> str:
        """The client id of the connection of that name; tells nothing about the others'."""
        tail = hashlib.blake2b(name.encode(), key=self._secret, digest_size=16)
        return f"{name}-{tail.hexdigest()}"
