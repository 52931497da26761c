"""What a node and its cluster's authority say to each other.

One request and one answer, each a line of JSON, inside TLS.
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
    """Who is the authority? Asked before anything can be verified; the answer is public."""


class Join(_Line, frozen=True, tag="join"):
    """Let me in. Only ever sent inside a connection whose other end was verified."""

    secret: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    node_id: Annotated[str, msgspec.Meta(max_length=64)]
    signing_request: Annotated[str, msgspec.Meta(max_length=4096)]

    def __repr__(self) -> str:
        return f"<Join {self.node_id!a}>"


class Renew(_Line, frozen=True, tag="renew"):
    """A new certificate for whom the connection's certificate names."""

    signing_request: Annotated[str, msgspec.Meta(max_length=4096)]


class WatchTrust(_Line, frozen=True, tag="watch"):
    """Whom to trust, as soon as it is something else than revision `known`."""

    known: int


class TrustList(_Line, frozen=True, tag="trust"):
    """Whom to trust.

    revision     grows with every change
    authorities  their certificates
    revoked      their signed revocation lists
    current      common name of the authority that signs now
    """

    revision: int
    authorities: Pem
    revoked: Pem
    current: str


class Certificate(_Line, frozen=True, tag="admission"):
    """A node's new certificate, the role it was given, and whom to trust."""

    chain: Pem
    role: str
    trust: TrustList


class Denial(_Line, frozen=True, tag="denial"):
    """No."""

    reason: Annotated[str, msgspec.Meta(max_length=1024)]


EnrolmentRequest = Introduce | Join | Renew | WatchTrust
EnrolmentAnswer = TrustList | Certificate | Denial

_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_requests: msgspec.json.Decoder[EnrolmentRequest] = msgspec.json.Decoder(EnrolmentRequest)
_answers: msgspec.json.Decoder[EnrolmentAnswer] = msgspec.json.Decoder(EnrolmentAnswer)


def write_line(line: EnrolmentRequest | EnrolmentAnswer) -> bytes:
    """A request or an answer as it travels."""
    return msgspec.json.encode(line) + b"\n"


def read_request(line: bytes) -> EnrolmentRequest:
    """Read what a node sent.

    Raises EnrolmentError.
    """
    try:
        return _requests.decode(line)
    except _UNREADABLE as error:
        raise EnrolmentError(f"the request cannot be read: {error}") from error


def read_answer(line: bytes) -> EnrolmentAnswer:
    """Read what an authority sent.

    Raises EnrolmentError.
    """
    try:
        return _answers.decode(line)
    except _UNREADABLE as error:
        raise EnrolmentError(f"the authority's answer cannot be read: {error}") from error
