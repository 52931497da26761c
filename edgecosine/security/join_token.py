"""The join token of an invited node, as one word to copy.

It holds the authority's addresses and fingerprint, and a secret that works once.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from typing import Annotated, Final

import msgspec

from edgecosine.errors import ConfigError

PREFIX: Final = "ecs1-"
SECRET_BYTES: Final = 16
MAX_TOKEN_CHARACTERS: Final = 2048
_CHECK_BYTES: Final = 4
_ALLOWED: Final = "the whole word that `edgecosine cluster invite` printed"


class JoinToken(msgspec.Struct, frozen=True, array_like=True):
    """An invitation.

    fingerprint  SHA-256 of the authority's certificate
    addresses    HOST:PORT of its endpoint, in the order of attempts
    """

    cluster: Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
    fingerprint: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    secret: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    addresses: Annotated[
        list[Annotated[str, msgspec.Meta(max_length=280)]], msgspec.Meta(max_length=8)
    ]

    def __repr__(self) -> str:
        return f"<JoinToken {self.cluster} {self.fingerprint.hex()[:8]} {self.addresses}>"

    def __str__(self) -> str:
        return repr(self)


def new_secret() -> bytes:
    """A random secret of 128 bits."""
    return secrets.token_bytes(SECRET_BYTES)


def write_token(token: JoinToken) -> str:
    """Encode the token as one word, with a checksum against typing errors."""
    payload = msgspec.msgpack.encode(token)
    return PREFIX + base64.urlsafe_b64encode(_check(payload) + payload).decode().rstrip("=")


def read_token(text: str) -> JoinToken:
    """Decode a token of `write_token`.

    Raises ConfigError, which does not repeat the token.
    """
    token_text = text.strip()
    if not token_text.startswith(PREFIX) or len(token_text) > MAX_TOKEN_CHARACTERS:
        raise ConfigError("TOKEN", f"{token_text[:5]}…", _ALLOWED)
    body = token_text.removeprefix(PREFIX)
    try:
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        if _check(raw[_CHECK_BYTES:]) != raw[:_CHECK_BYTES]:
            raise ConfigError("TOKEN", f"{PREFIX}…", f"{_ALLOWED}; this one is mistyped or cut off")
        return msgspec.msgpack.decode(raw[_CHECK_BYTES:], type=JoinToken)
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise ConfigError("TOKEN", f"{PREFIX}…", _ALLOWED) from error


def _check(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()[:_CHECK_BYTES]
