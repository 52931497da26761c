"""What a `WorkBook` wants done."""

from __future__ import annotations

from dataclasses import dataclass

from edgecosine.protocol.api.claim_messages import Claim
from edgecosine.protocol.api.parse_request import Ticket


@dataclass(frozen=True, slots=True)
class Tell:
    """Publish our claim."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class Clear:
    """Clear the claim that is published."""

    key: str


@dataclass(frozen=True, slots=True)
class Inform:
    """Tell all that the request was answered or refused here."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Agree:
    """Consent to a claim."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class Start:
    """The request is ours: have it answered."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The request is another target's: drop whatever there is of it."""

    key: str


Effect = Tell | Clear | Inform | Agree | Start | GiveUp
