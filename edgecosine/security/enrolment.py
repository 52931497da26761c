"""Messages between a node and its cluster's authority.

One request and one answer, each a line of JSON, over TLS.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from edgecosine.errors import EnrolmentError

MAX_REQUEST_BYTES: Final = 16 << 10
MAX_ANSWER_BYTES: Final = 4 << 20

Pem = Annotated[str, msgspec.Meta(max_length=1 << 20)]


class _Line(msgspec.Struct, frozen=True, tag_field="type"):
    pass


class Introduce(_Line, frozen=True, tag="introduce"):
    """Requests the authority's public certificate, before the connection can be verified."""


class Join(_Line, frozen=True, tag="join"):
    """Requests admission; sent only over a connection whose other end is verified."""

    secret: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    node_id: Annotated[str, msgspec.Meta(max_length=64)]
    signing_request: Annotated[str, msgspec.Meta(max_length=4096)]

    def __repr__(self) -> str:
        return f"<Join {self.node_id!a}>"


class Renew(_Line, frozen=True, tag="renew"):
    """Requests a new certificate for the node of the connection's certificate."""

    signing_request: Annotated[str, msgspec.Meta(max_length=4096)]


class WatchTrust(_Line, frozen=True, tag="watch"):
    """Requests the trust list, as soon as its revision differs from `known`."""

    known: int


class TrustList(_Line, frozen=True, tag="trust"):
    """The trusted authorities.

    revision     grows with every change
    authorities  their certificates
    revoked      their signed revocation lists
    current      common name of the current signer
    """

    revision: int
    authorities: Pem
    revoked: Pem
    current: str


class Certificate(_Line, frozen=True, tag="admission"):
    """A node's new certificate, its role, and the trust list."""

    chain: Pem
    role: str
    trust: TrustList


class Denial(_Line, frozen=True, tag="denial"):
    """A refusal."""

    reason: Annotated[str, msgspec.Meta(max_length=1024)]


EnrolmentRequest = Introduce | Join | Renew | WatchTrust
EnrolmentAnswer = TrustList | Certificate | Denial

_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_requests: msgspec.json.Decoder[EnrolmentRequest] = msgspec.json.Decoder(EnrolmentRequest)
_answers: msgspec.json.Decoder[EnrolmentAnswer] = msgspec.json.Decoder(EnrolmentAnswer)


def write_line(line: EnrolmentRequest | EnrolmentAnswer) -> bytes:
    """Encode a request or an answer as a line."""
    return msgspec.json.encode(line) + b"\n"


def read_request(line: bytes) -> EnrolmentRequest:
    """Parse a node's request.

    Raises EnrolmentError.
    """
    try:
        return _requests.decode(line)
    except _UNREADABLE as error:
        raise EnrolmentError(f"the request cannot be read: {error}") from error


def read_answer(line: bytes) -> EnrolmentAnswer:
    """Parse an authority's answer.

    Raises EnrolmentError.
    """
    try:
        return _answers.decode(line)
    except _UNREADABLE as error:
        raise EnrolmentError(f"the authority's answer cannot be read: {error}") from error
