"""Converts messages and limits between our values and MQTT 5 properties. Imports no MQTT library:
a library's values are read by the names that MQTT 5 gives their fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from edgecosine.mqtt.broker_limits import BrokerLimits
from edgecosine.protocol.api.mqtt_message import Incoming, Outgoing

Fields = tuple[tuple[str, object], ...]
"""Names and values of MQTT 5 properties; hashable, so that made properties can be cached."""


class LibraryMessage(Protocol):
    """A received message, as an MQTT library gives it."""

    topic: Any
    payload: Any
    retain: Any
    properties: Any


def properties_of(message: Outgoing) -> Fields:
    """The properties with which a message is published."""
    given = (
        ("CorrelationData", message.correlation),
        ("ResponseTopic", message.response_topic),
        ("ContentType", message.content_type),
        ("MessageExpiryInterval", message.expiry_s),
        ("UserProperty", message.user or None),
    )
    return tuple([each for each in given if each[1] is not None])


def incoming(message: LibraryMessage, acknowledge: Callable[[], None]) -> Incoming:
    """A received message as our value."""
    properties = message.properties
    users = getattr(properties, "UserProperty", None) or []
    return Incoming(
        topic=message.topic,
        payload=bytes(message.payload),
        retain=message.retain,
        response_topic=getattr(properties, "ResponseTopic", None),
        correlation=getattr(properties, "CorrelationData", None),
        expiry_s=getattr(properties, "MessageExpiryInterval", None),
        content_type=getattr(properties, "ContentType", None),
        client=next((value for name, value in users if name == "client"), None),
        acknowledge=acknowledge,
    )


def limits_in(properties: object) -> BrokerLimits:
    """The limits in the properties of a broker's CONNACK; MQTT 3.1.1 has none."""
    given = {
        "max_packet_bytes": getattr(properties, "MaximumPacketSize", None),
        "max_qos": getattr(properties, "MaximumQoS", None),
        "keeps_retained": getattr(properties, "RetainAvailable", None),
        "max_in_flight": getattr(properties, "ReceiveMaximum", None),
    }
    return BrokerLimits(**{name: value for name, value in given.items() if value is not None})
