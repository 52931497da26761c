"""Home Assistant's MQTT discovery: each node is a device, and so is the cluster.

The devices of a cluster are retained below `homeassistant/device/edgecosine_<cluster>/`, so that a
broker can limit the cluster's rights to them. They name our own topics: nothing else is published
for Home Assistant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args

import msgspec

from edgecosine.protocol.api.mqtt_message import JSON_TYPE, Outgoing
from edgecosine.protocol.api.retained_topics import NodePresence
from edgecosine.protocol.api.topics import Topics
from edgecosine.protocol.wire.messages import Role

STATUS_TOPIC: Final = "homeassistant/status"
"""Home Assistant publishes `online` here when it has started, and then expects all devices."""
ONLINE: Final = b"online"

Component = Mapping[str, Any]


def root(topics: Topics) -> str:
    """The prefix of a cluster's devices, without a slash."""
    return f"homeassistant/device/edgecosine_{_without_dots(topics.cluster)}"


def node_topic(topics: Topics, node_id: str) -> str:
    """Where a node's device is retained; dots of names become dashes, as Home Assistant demands."""
    return f"{root(topics)}/{_without_dots(node_id)}/config"


def cluster_topic(topics: Topics) -> str:
    """Where the cluster's device is retained."""
    return f"{root(topics)}/config"


def node_device(topics: Topics, node_id: str, role: Role, model: str, version: str) -> Outgoing:
    """The publication of a node's device: its status, speed, and what else its role reports."""
    status, state = topics.node_status(node_id), topics.node_state(node_id)
    gone = "{{ 'offline' if value_json.state in ['offline', 'lost'] else 'online' }}"
    components = _of_target() if role == "target" else _of_drafter()
    identity = f"edgecosine_{topics.cluster}_{node_id}"
    config = {
        **_about(identity, node_id, f"{role}: {model}"[:255], version),
        "availability": [{"topic": status, "value_template": gone}],
        "state_topic": state,
        "components": {
            "status": {
                **_sensor("Status", "state", icon="mdi:lan-connect"),
                "device_class": "enum",
                "options": list(get_args(NodePresence)),
                "state_topic": status,
                "json_attributes_topic": status,
                "availability": [],  # a node that is lost has this status
            },
            **dict(components),
        },
    }
    config["device"]["via_device"] = f"edgecosine_{topics.cluster}"
    return _retained(node_topic(topics, node_id), identity, config)


def cluster_device(topics: Topics, version: str) -> Outgoing:
    """The publication of the cluster's device, the same from each of its targets."""
    identity = f"edgecosine_{topics.cluster}"
    config = {
        **_about(identity, f"EdgeCoSine {topics.cluster}", "cluster", version),
        "components": {
            "status": {
                "platform": "sensor",
                "name": "Status",
                "icon": "mdi:server-network",
                "device_class": "enum",
                "options": ["online", "draining", "offline"],
                "state_topic": topics.status,
            },
            "models": {
                "platform": "sensor",
                "name": "Models",
                "icon": "mdi:brain",
                "state_topic": topics.info,
                "value_template": "{{ (value_json.models | join(', '))[:255] }}",
            },
            "targets": {
                "platform": "sensor",
                "name": "Targets",
                "state_class": "measurement",
                "state_topic": topics.info,
                "value_template": "{{ value_json.targets | count }}",
            },
        },
    }
    return _retained(cluster_topic(topics), identity, config)


def _of_target() -> Iterator[tuple[str, Component]]:
    plan = "{{ {'plan': value_json.plan, 'drafters': value_json.drafters | list} | tojson }}"
    speed = _sensor("Speed", "tokens_per_s", "tokens/s", icon="mdi:speedometer")
    yield "speed", {**speed, "json_attributes_template": plan}
    yield "acceptance", _sensor("Accepted per round", "acceptance", "tokens", icon="mdi:check-all")
    yield "running", _sensor("Running", "running", "requests", icon="mdi:run")
    yield "queue", _sensor("Queue", "queued", "requests", icon="mdi:tray-full")
    yield "drafters", _sensor("Drafters", "drafters | count", icon="mdi:account-group")


def _of_drafter() -> Iterator[tuple[str, Component]]:
    yield "speed", _sensor("Speed", "tokens_per_s", "tokens/s", icon="mdi:speedometer")
    yield "rtt", {**_sensor("Round-trip time", "rtt_ms", "ms"), "device_class": "duration"}
    yield "drafted", _sensor("Drafted", "drafted", "tokens", "total_increasing", "mdi:pencil")
    yield "targets", _sensor("Targets", "targets | count", icon="mdi:bullseye")


def _sensor(
    name: str, field: str, unit: str = "", state_class: str = "measurement", icon: str = ""
) -> dict[str, Any]:
    sensor = {"platform": "sensor", "name": name, "value_template": f"{{{{ value_json.{field} }}}}"}
    if icon:
        sensor["icon"] = icon
    if field != "state":
        sensor["state_class"] = state_class
    if unit:
        sensor["unit_of_measurement"] = unit
    return sensor


def _about(identity: str, name: str, model: str, version: str) -> dict[str, Any]:
    return {
        "device": {
            "identifiers": [identity],
            "name": name,
            "manufacturer": "EdgeCoSine",
            "model": model,
            "sw_version": version,
        },
        "origin": {"name": "EdgeCoSine", "sw_version": version},
    }


def _retained(topic: str, identity: str, config: dict[str, Any]) -> Outgoing:
    state_topic = config.get("state_topic")
    for key, component in config["components"].items():
        component["unique_id"] = f"{identity}_{key}"
        if "json_attributes_template" in component:
            component["json_attributes_topic"] = state_topic
    return Outgoing(topic, msgspec.json.encode(config), retain=True, content_type=JSON_TYPE)


def _without_dots(name: str) -> str:
    return name.replace(".", "-")
