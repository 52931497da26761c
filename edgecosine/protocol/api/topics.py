"""The MQTT topics of a cluster: formatting, parsing, and the check of reply topics.

Every topic begins with `edgecosine/<cluster>/`. Topic names are made and parsed here only, without
knowledge of payloads. No accepted name can reach another topic tree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, get_args

from edgecosine.errors import ConfigError, RequestError
from edgecosine.protocol.api.request import RequestKind

PREFIX = "edgecosine"
MAX_TOPIC_BYTES = 256
"""Limit of a reply topic that a client names."""
MAX_LEVELS: Final = 200
"""Mosquitto ends the connection for a topic with more levels."""
_MQTT_TOPIC_BYTES: Final = 65_535
REQUEST_KINDS: tuple[RequestKind, ...] = get_args(RequestKind)

_IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_FORBIDDEN = re.compile(
    "[+#\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(
        f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000)
    )
    + "]"
)
"""Wildcards, and the code points for which MQTT lets a broker end the connection: controls,
surrogates and non-characters."""


def is_identifier(name: str) -> bool:
    """Whether `name` may name a cluster, a node, a client or a request."""
    return _IDENTIFIER.fullmatch(name) is not None


def can_publish_to(topic: str) -> bool:
    """Whether MQTT allows a message to `topic`; for others, many brokers end the connection."""
    return (
        0 < len(topic) <= _MQTT_TOPIC_BYTES
        and _FORBIDDEN.search(topic) is None
        and topic.count("/") < MAX_LEVELS
        and len(topic.encode()) <= _MQTT_TOPIC_BYTES
    )


@dataclass(frozen=True, slots=True)
class RequestTopic:
    """A client sends a request."""

    kind: RequestKind


@dataclass(frozen=True, slots=True)
class CancelTopic:
    """A client cancels a request."""

    request_id: str


@dataclass(frozen=True, slots=True)
class StatusTopic:
    """The cluster's status."""


@dataclass(frozen=True, slots=True)
class InfoTopic:
    """The cluster's info."""


@dataclass(frozen=True, slots=True)
class NodeStatusTopic:
    """A node's status."""

    node_id: str


@dataclass(frozen=True, slots=True)
class NodeStateTopic:
    """A node's state."""

    node_id: str


@dataclass(frozen=True, slots=True)
class ClientStatusTopic:
    """A client's status."""

    client_id: str


@dataclass(frozen=True, slots=True)
class ResponseTopic:
    """A final message for a client."""

    client_id: str
    request_id: str


@dataclass(frozen=True, slots=True)
class StreamTopic:
    """A part of an answer for a client."""

    client_id: str
    request_id: str


@dataclass(frozen=True, slots=True)
class ClaimTopic:
    """A target claims a request, or clears its claim."""

    client_id: str
    request_id: str

    @property
    def key(self) -> str:
        """The request's unique name in the cluster."""
        return f"{self.client_id}/{self.request_id}"


@dataclass(frozen=True, slots=True)
class MembershipTopic:
    """A target's membership status."""

    node_id: str


@dataclass(frozen=True, slots=True)
class InboxTopic:
    """A message for one target."""

    node_id: str


AnyTopic = (
    RequestTopic
    | CancelTopic
    | StatusTopic
    | InfoTopic
    | NodeStatusTopic
    | NodeStateTopic
    | ClientStatusTopic
    | ResponseTopic
    | StreamTopic
    | ClaimTopic
    | MembershipTopic
    | InboxTopic
)


@dataclass(frozen=True, slots=True)
class Topics:
    """All topics of one cluster.

    Raises ConfigError when the cluster's name cannot be a level of a topic.
    """

    cluster: str

    def __post_init__(self) -> None:
        if not is_identifier(self.cluster):
            raise ConfigError("cluster", self.cluster, "1 to 64 letters, digits, '_', '.' or '-'")

    @property
    def root(self) -> str:
        """The prefix of all topics of the cluster, without a slash."""
        return f"{PREFIX}/{self.cluster}"

    @property
    def status(self) -> str:
        """Retained `online`, `draining` or `offline`."""
        return f"{self.root}/status"

    @property
    def info(self) -> str:
        """Retained JSON: version, models, limits, topics."""
        return f"{self.root}/info"

    def node_status(self, node_id: str) -> str:
        """Retained JSON: the node's status."""
        return f"{self.root}/node/{node_id}/status"

    def node_state(self, node_id: str) -> str:
        """Retained JSON: the node's state."""
        return f"{self.root}/node/{node_id}/state"

    def request(self, kind: RequestKind) -> str:
        """Topic of requests of one kind."""
        return f"{self.root}/request/{kind}"

    def response(self, client_id: str, request_id: str) -> str:
        """Topic of the final message, unless the client names another one."""
        return f"{self.root}/response/{client_id}/{request_id}"

    def stream(self, client_id: str, request_id: str) -> str:
        """Topic of the parts of an answer."""
        return f"{self.root}/stream/{client_id}/{request_id}"

    def job_state(self, request_id: str) -> str:
        """Topic of the states of a request."""
        return f"{self.root}/job/{request_id}/state"

    def job_cancel(self, request_id: str) -> str:
        """Topic on which a client cancels a request."""
        return f"{self.root}/job/{request_id}/cancel"

    def client_status(self, client_id: str) -> str:
        """Topic of a client's `online` or `offline`, also by its will; not retained."""
        return f"{self.root}/client/{client_id}/status"

    def work(self, client_id: str, request_id: str) -> str:
        """Retained: the claim to a request. Like the next two, between targets only."""
        return f"{self.root}/work/{client_id}/{request_id}"

    def membership(self, node_id: str) -> str:
        """Retained: a target's membership status."""
        return f"{self.root}/target/{node_id}/standing"

    def inbox(self, node_id: str) -> str:
        """Topic of messages for one target."""
        return f"{self.root}/target/{node_id}/inbox"

    @property
    def requests(self) -> str:
        """Filter for requests of all kinds."""
        return f"{self.root}/request/+"

    @property
    def cancels(self) -> str:
        """Filter for all cancellations."""
        return self.job_cancel("+")

    def parse(self, topic: str) -> AnyTopic | None:
        """The parsed topic; None when it is not one of this cluster's."""
        root = self.root + "/"
        if not topic.startswith(root):
            return None
        levels = topic[len(root) :].split("/")
        if not all(is_identifier(level) for level in levels):
            return None
        match levels:
            case ["request", kind]:
                known = [each for each in REQUEST_KINDS if each == kind]
                return RequestTopic(known[0]) if known else None
            case ["job", request_id, "cancel"]:
                return CancelTopic(request_id)
            case ["status"]:
                return StatusTopic()
            case ["info"]:
                return InfoTopic()
            case ["node", node_id, "status"]:
                return NodeStatusTopic(node_id)
            case ["node", node_id, "state"]:
                return NodeStateTopic(node_id)
            case ["client", client_id, "status"]:
                return ClientStatusTopic(client_id)
            case ["response", client_id, request_id]:
                return ResponseTopic(client_id, request_id)
            case ["stream", client_id, request_id]:
                return StreamTopic(client_id, request_id)
            case _:
                return _between_targets(levels)

    def check_reply(self, topic: str) -> str:
        """Return a reply topic that a client has named, if it is in the cluster's response tree.

        Otherwise a client could make the cluster publish to any topic that the cluster may write
        to, such as that of a door lock at the same broker.

        Raises RequestError.
        """
        reply_root = f"{self.root}/response/"
        if (
            not topic.startswith(reply_root)
            or len(topic) == len(reply_root)
            or "$" in topic
            or not can_publish_to(topic)
            or len(topic.encode()) > MAX_TOPIC_BYTES
        ):
            raise RequestError(
                f"a reply topic is below {reply_root}, holds no wildcard, '$', control or "
                f"non-character, and has at most {MAX_TOPIC_BYTES} bytes and {MAX_LEVELS} levels",
                code="reply_topic_refused",
                parameter="reply_to",
                status=403,
            )
        return topic


def _between_targets(levels: list[str]) -> ClaimTopic | MembershipTopic | InboxTopic | None:
    match levels:
        case ["work", client_id, request_id]:
            return ClaimTopic(client_id, request_id)
        case ["target", node_id, "standing"]:
            return MembershipTopic(node_id)
        case ["target", node_id, "inbox"]:
            return InboxTopic(node_id)
        case _:
            return None
