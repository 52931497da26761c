"""What one broker takes, as it says when it lets us in (MQTT 5). Values only, no connection."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from edgecosine.protocol.api.mqtt_message import Outgoing, Qos
from edgecosine.protocol.api.topics import can_publish_to

_LARGEST_PACKET: Final = 268_435_460
"""Of any broker: MQTT has no way to write a greater length."""
_HEADER_BYTES: Final = 16
"""At most: type, lengths of the packet, the topic and the properties, the packet's number."""
_PROPERTY_BYTES: Final = 5
"""At most: a property's name and the lengths of its values."""


@dataclass(frozen=True, slots=True)
class BrokerLimits:
    """The limits of a broker; by default those of a broker that told none.

    max_in_flight  messages of QoS 1 that it acknowledges at one time
    """

    max_packet_bytes: int = _LARGEST_PACKET
    max_qos: Qos = 1
    keeps_retained: bool = True
    max_in_flight: int = 65_535

    def fit(self, message: Outgoing) -> Outgoing:
        """The message, without a wish that this broker would end the connection for."""
        if message.qos > self.max_qos or (message.retain and not self.keeps_retained):
            return replace(
                message,
                qos=min(message.qos, self.max_qos),
                retain=message.retain and self.keeps_retained,
            )
        return message

    def objection(self, message: Outgoing) -> str | None:
        """Why the broker would end the connection for this message; None when it would not."""
        if not can_publish_to(message.topic):
            return "MQTT forbids the topic"
        if (size := packet_bytes(message)) > self.max_packet_bytes:
            return f"{size} bytes are more than the {self.max_packet_bytes} that the broker takes"
        return None


def packet_bytes(message: Outgoing) -> int:
    """How long the message is as a packet of MQTT 5, rounded up by a few bytes."""
    texts = (message.response_topic, message.content_type, *sum(message.user, ()))
    properties = [len(text.encode()) for text in texts if text is not None]
    if message.correlation is not None:
        properties.append(len(message.correlation))
    if message.expiry_s is not None:
        properties.append(4)
    named = sum(properties) + _PROPERTY_BYTES * len(properties)
    return _HEADER_BYTES + len(message.topic.encode()) + named + len(message.payload)
