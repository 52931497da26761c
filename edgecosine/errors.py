"""Every error that EdgeCoSine raises on purpose, named by whose fault it is.

EdgecosineError
├── ConfigError            the operator's: a setting is wrong; says key, value and what is allowed
│   ├── AddressTaken       another program's: it listens where we were to; says where
│   └── ModelsNotInstalled  packages that models need are missing; says how to install them
├── RequestError           the asker's: carries an OpenAI error code and the parameter at fault
│   ├── Overloaded         nobody's: the door is full; says when to try again
│   └── JournalUnavailable the disk's: the request could not be journalled; says when to try again
├── LinkError              a link between two nodes ended
│   ├── LinkLost           the network's: end of file, reset, silence
│   ├── LocalProtocolError ours: we tried to send what the protocol forbids
│   └── RemoteProtocolError  the peer's: bytes, messages or an order that the protocol forbids
│       ├── PeerFlooded    the peer sent more messages than it was asked for
│       └── PeerRefused    the peer does not want us, or we do not want the peer; says why
│           └── PeerMismatched  the two can never be linked as they are; says what to change
├── BrokerLost             the MQTT connection ended
├── EnrolmentError         the cluster's authority cannot be reached, or is not the one it should be
│   └── EnrolmentRefused   the authority says no; says why
├── JournalLost            the journal cannot be written or read
├── ActorStopped           the actor that was asked has ended
├── LabError               the lab cannot make the network that it was told to; says why
└── EngineError            a model cannot be loaded or run
    ├── ModelUnavailable   no such model, or files are missing; says where it looked
    ├── ModelUnsupported   this family or setting cannot be served exactly; says why
    ├── NoLogits           the model gave NaN or infinite logits for one request
    └── OutOfMemory        needs more than there is; says both figures
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class EdgecosineError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(EdgecosineError):
    """A setting is wrong."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key} = {value!r} is not allowed: {allowed}")
        self.key, self.value, self.allowed = key, value, allowed


class AddressTaken(ConfigError):
    """Another program listens there at this moment."""


class ModelsNotInstalled(ConfigError):
    """Packages that models need are not installed."""

    INSTALL = "pip install 'edgecosine[models]'"

    def __init__(self, what: str, missing: Sequence[str]) -> None:
        super().__init__("model", what, self.INSTALL)
        self.args = (f"{what} needs {', '.join(missing)}, not installed here: {self.INSTALL}",)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not served, as a value that can be kept and shared.

    A kept exception would also keep the frames, and the bodies in them, of every raise.
    The fields are those of RequestError.
    """

    message: str
    code: str = "invalid_request"
    parameter: str | None = None
    status: int = 400
    retry_after_s: float | None = None

    def error(self) -> RequestError:
        """A new exception that says the same."""
        return RequestError(
            self.message,
            code=self.code,
            parameter=self.parameter,
            status=self.status,
            retry_after_s=self.retry_after_s,
        )


class RequestError(EdgecosineError):
    """A request cannot be served as it was put. It is made anew for each raise; `Refusal` is kept.

    `code` is an OpenAI error code, `parameter` the field at fault, `status` the HTTP number that
    rule engines branch on. `retry_after_s` says in how many seconds the same request may be served;
    None where asking again is of no use.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "invalid_request",
        parameter: str | None = None,
        status: int = 400,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.code, self.parameter, self.status = (
            message,
            code,
            parameter,
            status,
        )
        self.retry_after_s = retry_after_s

    @property
    def refusal(self) -> Refusal:
        """What it says, without where it was raised."""
        return Refusal(self.message, self.code, self.parameter, self.status, self.retry_after_s)


class Overloaded(RequestError):
    """No room for another request now."""

    def __init__(
        self, retry_after_s: float, why: str = "the cluster is at capacity", status: int = 503
    ) -> None:
        super().__init__(
            f"{why}; try again in {retry_after_s:.1f} s",
            code="overloaded",
            status=status,
            retry_after_s=retry_after_s,
        )


class JournalUnavailable(RequestError):
    """The request could not be made to outlive this process, so it was not accepted."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(
            "the cluster cannot write its journal, so it takes no requests; try again in "
            f"{retry_after_s:.1f} s",
            code="journal_unavailable",
            status=503,
            retry_after_s=retry_after_s,
        )


class LinkError(EdgecosineError):
    """A link between two nodes ended."""


class LinkLost(LinkError):
    """The network took the link away."""


class LocalProtocolError(LinkError):
    """We tried to send what the protocol forbids."""


class RemoteProtocolError(LinkError):
    """The peer sent what the protocol forbids."""


class PeerFlooded(RemoteProtocolError):
    """The peer sent more messages than it was asked for."""


class PeerRefused(RemoteProtocolError):
    """One side does not want the other; the message says why."""


class PeerMismatched(PeerRefused):
    """The two nodes can never be linked as they are; the message says what to change."""


class BrokerLost(EdgecosineError):
    """The connection to the MQTT broker ended; `reason_code` is what an MQTT 5 broker gave."""

    def __init__(self, message: str, reason_code: int | None = None) -> None:
        super().__init__(message)
        self.reason_code = reason_code


class EnrolmentError(EdgecosineError):
    """The cluster's authority cannot be reached, or somebody else answers in its place."""


class EnrolmentRefused(EnrolmentError):
    """The cluster's authority does not admit, renew or tell; the message says why."""


class JournalLost(EdgecosineError):
    """The journal cannot be written or read; the message says why."""


class ActorStopped(EdgecosineError):
    """The actor that was asked has ended."""


class LabError(EdgecosineError):
    """The lab cannot do what it was told."""


class EngineError(EdgecosineError):
    """A model cannot be loaded or run."""


class ModelUnavailable(EngineError):
    """No such model, or its files are missing."""


class ModelUnsupported(EngineError):
    """The model cannot be served under the exactness policy that was asked for."""


class NoLogits(EngineError):
    """For one request the model gave logits from which no token can be drawn."""

    def __init__(self) -> None:
        super().__init__("the model gave NaN or infinite logits for this request")


class OutOfMemory(EngineError):
    """The device has less memory than the model, its cache and its workspace need."""


def root_of(error: BaseException) -> BaseException:
    """The first plain error in what task groups have raised."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
