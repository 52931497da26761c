"""The limits that a broker announces in its CONNACK (MQTT 5). Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from edgecosine.protocol.api.mqtt_message import Outgoing, Qos
from edgecosine.protocol.api.topics import can_publish_to

_LARGEST_PACKET: Final = 268_435_460
"""The largest packet that MQTT can encode."""
_HEADER_BYTES: Final = 16
"""At most: type, lengths of the packet, the topic and the properties, the packet id."""
_PROPERTY_BYTES: Final = 5
"""At most: a property's name and the lengths of its values."""


@dataclass(frozen=True, slots=True)
class BrokerLimits:
    """The limits of a broker; the defaults are those of a broker that announces none.

    max_in_flight  unacknowledged messages of QoS 1
    """

    max_packet_bytes: int = _LARGEST_PACKET
    max_qos: Qos = 1
    keeps_retained: bool = True
    max_in_flight: int = 65_535

    def fit(self, message: Outgoing) -> Outgoing:
        """The message, with QoS and retain flag lowered to what the broker supports."""
        if message.qos > self.max_qos or (message.retain and not self.keeps_retained):
            return replace(
                message,
                qos=min(message.qos, self.max_qos),
                retain=message.retain and self.keeps_retained,
            )
        return message

    def objection(self, message: Outgoing) -> str | None:
        """Why the broker would end the connection for this message; None if it accepts it."""
        if not can_publish_to(message.topic):
            return "MQTT forbids the topic"
        if (size := packet_bytes(message)) > self.max_packet_bytes:
            return f"{size} bytes exceed the broker's limit of {self.max_packet_bytes}"
        return None


def packet_bytes(message: Outgoing) -> int:
    """Size of the message as an MQTT 5 packet, an upper bound by a few bytes."""
    texts = (message.response_topic, message.content_type, *sum(message.user, ()))
    properties = [len(text.encode()) for text in texts if text is not None]
    if message.correlation is not None:
        properties.append(len(message.correlation))
    if message.expiry_s is not None:
        properties.append(4)
    named = sum(properties) + _PROPERTY_BYTES * len(properties)
    return _HEADER_BYTES + len(message.topic.encode()) + named + len(message.payload)
