"""A node's MQTT client ids: stable over restarts, and secret.

A broker gives a session to any connection with its client id, whatever its password or certificate.
So an id ends with a keyed hash that only the node can compute.
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
    """Client ids derived from one secret, drawn by default."""

    def __init__(self, secret: bytes = b"") -> None:
        self._secret = secret or secrets.token_bytes(_SECRET_BYTES)

    def __repr__(self) -> str:
        return "<ClientIds>"

    @classmethod
    def kept_in(cls, directory: Path) -> Self:
        """Client ids from the secret stored in `directory`, which is created at first use.

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
        """The client id of the connection `name`; it reveals nothing about other ids."""
        tail = hashlib.blake2b(name.encode(), key=self._secret, digest_size=16)
        return f"{name}-{tail.hexdigest()}"
