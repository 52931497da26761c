"""The actions that a `QueueState` returns."""

from __future__ import annotations

from dataclasses import dataclass

from edgecosine.protocol.api.claim_messages import Claim
from edgecosine.protocol.api.request_record import RequestTicket


@dataclass(frozen=True, slots=True)
class PublishClaim:
    """Publish a claim of ours, or the claim that overrides it."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class ClearClaim:
    """Clear a retained claim."""

    key: str


@dataclass(frozen=True, slots=True)
class PublishKnown:
    """Publish that a request was answered or refused here."""

    ticket: RequestTicket


@dataclass(frozen=True, slots=True)
class AcknowledgeClaim:
    """Acknowledge the claim of another target."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class StartRequest:
    """Start a request that is ours now."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class AbandonRequest:
    """Drop a request that another target owns."""

    key: str


QueueAction = (
    PublishClaim | ClearClaim | PublishKnown | AcknowledgeClaim | StartRequest | AbandonRequest
)
