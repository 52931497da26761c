"""What a `QueueState` wants done."""

from __future__ import annotations

from dataclasses import dataclass

from edgecosine.protocol.api.claim_messages import Claim
from edgecosine.protocol.api.request_record import ReplyAddress


@dataclass(frozen=True, slots=True)
class PublishClaim:
    """Publish our claim."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class ClearClaim:
    """Clear the claim that is published."""

    key: str


@dataclass(frozen=True, slots=True)
class PublishKnown:
    """Tell all that the request was answered or refused here."""

    ticket: ReplyAddress


@dataclass(frozen=True, slots=True)
class AcknowledgeClaim:
    """Consent to a claim."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class StartRequest:
    """The request is ours: have it answered."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class AbandonRequest:
    """The request is another target's: drop whatever there is of it."""

    key: str


QueueAction = (
    PublishClaim | ClearClaim | PublishKnown | AcknowledgeClaim | StartRequest | AbandonRequest
)
