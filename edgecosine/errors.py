"""Every error that EdgeCoSine raises on purpose, by cause.

EdgecosineError
├── ConfigError            a setting is wrong; has key, value and the allowed values
│   ├── AddressTaken       another program uses the address
│   ├── HttpNotInstalled   packages that HTTP needs are missing; says how to install them
│   └── ModelsNotInstalled  packages that models need are missing; says how to install them
├── RequestError           a request is refused; has an OpenAI error code and the parameter
│   ├── Overloaded         the cluster is at capacity; has a time to retry
│   └── JournalUnavailable the request could not be journalled; has a time to retry
├── LinkError              a link between two nodes ended
│   ├── LinkLost           end of file, reset, or no heartbeat
│   ├── LocalProtocolError this node tried to send what the protocol forbids
│   └── RemoteProtocolError  the peer sent what the protocol forbids
│       ├── PeerFlooded    the peer sent more messages than were requested
│       └── PeerRefused    one side rejects the other; has the reason
│           └── PeerMismatched  the settings rule out a link; has what to change
├── BrokerLost             the MQTT connection ended
├── EnrolmentError         the cluster's authority is unreachable or a wrong one
│   └── EnrolmentRefused   the authority refuses; has the reason
├── JournalLost            the journal cannot be written or read
├── ActorStopped           the actor of a call has ended
├── LabError               the lab cannot create its network; has the reason
└── EngineError            a model cannot be loaded or run
    ├── ModelUnavailable   no such model, or files are missing; has the paths
    ├── ModelUnsupported   this family or setting cannot be served exactly
    ├── NoLogits           the model gave NaN or infinite logits for one request
    └── OutOfMemory        not enough memory; has both figures
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


class EdgecosineError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(EdgecosineError):
    """A setting is wrong."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key} = {value!r} is not allowed; expected: {allowed}")
        self.key, self.value, self.allowed = key, value, allowed


class AddressTaken(ConfigError):
    """Another program listens at the address; `remedy` says what to do."""

    def __init__(self, key: str, address: str, remedy: str = "") -> None:
        super().__init__(key, address, "a free address")
        remedy = remedy or f"give another address by --{key}"
        self.args = (f"{address} is in use by another program: {remedy}",)


class ModelsNotInstalled(ConfigError):
    """Packages that models need are not installed."""

    INSTALL = "pip install 'edgecosine[models]'"

    def __init__(self, what: str, missing: Sequence[str]) -> None:
        super().__init__("model", what, self.INSTALL)
        self.args = (f"{what} needs {', '.join(missing)}, not installed here: {self.INSTALL}",)


class HttpNotInstalled(ConfigError):
    """Packages that the HTTP frontend needs are not installed."""

    def __init__(self, listen: str, missing: str) -> None:
        install = "pip install 'edgecosine[http]', or --http none"
        super().__init__("http", listen, f"{missing} is not installed here: {install}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused, as a value that can be stored and shared.

    A stored exception would also keep the frames of every raise, with their data.
    The fields are those of RequestError.
    """

    message: str
    code: str = "invalid_request"
    parameter: str | None = None
    status: int = 400
    retry_after_s: float | None = None

    def error(self) -> RequestError:
        """A new exception with these fields."""
        return RequestError(
            self.message,
            code=self.code,
            parameter=self.parameter,
            status=self.status,
            retry_after_s=self.retry_after_s,
        )


class RequestError(EdgecosineError):
    """A request cannot be served. Create one for each raise; store a `Refusal`.

    `code` is an OpenAI error code, `parameter` the field at fault, `status` the HTTP number that
    rule engines branch on. `retry_after_s` is the number of seconds until a retry may succeed;
    None if a retry is useless.
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
        """The fields, without the traceback."""
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
    """The request could not be journalled, so it was not accepted."""

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
    """The network connection of the link ended."""


class LocalProtocolError(LinkError):
    """We tried to send what the protocol forbids."""


class RemoteProtocolError(LinkError):
    """The peer sent what the protocol forbids."""


class PeerFlooded(RemoteProtocolError):
    """The peer sent more messages than were requested."""


class PeerInvalid(PeerFlooded):
    """The peer sent values that it cannot have computed; it is kept out as one that floods."""


class PeerRefused(RemoteProtocolError):
    """One side rejects the other, for the reason in the message."""


class PeerMismatched(PeerRefused):
    """The nodes' settings rule out a link; the message says what to change."""


class BrokerLost(EdgecosineError):
    """The connection to the MQTT broker ended; `reason_code` is what an MQTT 5 broker gave."""

    def __init__(self, message: str, reason_code: int | None = None) -> None:
        super().__init__(message)
        self.reason_code = reason_code


class EnrolmentError(EdgecosineError):
    """The cluster's authority cannot be reached, or another endpoint answers in its place."""


class EnrolmentRefused(EnrolmentError):
    """The cluster's authority refuses, for the reason in the message."""


class JournalLost(EdgecosineError):
    """The journal cannot be written or read; the message says why."""


class ActorStopped(EdgecosineError):
    """The actor of a call has ended."""


class LabError(EdgecosineError):
    """The lab cannot perform its task."""


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
    """The first plain error inside nested exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextmanager
def ungrouped(kind: type[Exception]) -> Iterator[None]:
    """Raise the first error of a group whose errors are all of one kind, instead of the group.

    An error that an `except*` clause raises is in a group again in Python before 3.11.4.
    """
    try:
        yield
    except BaseExceptionGroup as errors:
        if errors.split(kind)[1] is not None:
            raise
        raise root_of(errors) from None
