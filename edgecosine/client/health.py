"""A cluster's problems, derived from its retained messages. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecosine.protocol.api.retained_topics import NodeView

_UNHEALTHY = ("unavailable", "draining", "lost", "starting")
"""Node states that need attention; `offline` is intended."""


def concerns(*, is_online: bool, is_draining: bool, nodes: Mapping[str, NodeView]) -> list[str]:
    """One sentence for each problem; empty when the cluster is healthy."""
    found = []
    if not is_online:
        found.append("no gateway is online, so no request is answered")
    elif is_draining:
        found.append("the gateway is draining and accepts no new requests")
    for name, view in nodes.items():
        if view.status is not None and view.status.state in _UNHEALTHY:
            why = f": {view.status.reason}" if view.status.reason else ""
            found.append(f"{name} is {view.status.state}{why}")
        is_starting = view.status is not None and view.status.state == "starting"
        if view.is_here and not is_starting and view.state.get("role") == "target":
            found += [f"{name}: {concern}" for concern in _of_target(view.state)]
    return found


def _of_target(state: Mapping[str, Any]) -> list[str]:
    found = []
    if state.get("is_full"):
        found.append(f"the queue is full, {state.get('queued')} wait")
    if state.get("is_congested"):
        found.append("the broker is slower than the answers; stream parts are dropped")
    away = state.get("away")
    if isinstance(away, list) and away:
        found.append(f"no node of the committee's member {' and '.join(map(str, away))} is linked")
    if not state.get("drafters"):
        found.append("no drafter is linked, so it decodes alone")
    not_linked = state.get("not_linked")
    if isinstance(not_linked, list):
        found += [f"not linked: {peer}" for peer in not_linked]
    return found


def counted(nodes: Mapping[str, NodeView]) -> list[str]:
    """A line for each node with counters, which lists them."""
    lines = []
    for name, view in nodes.items():
        counters = view.state.get("counters")
        if isinstance(counters, dict) and counters:
            shown = ", ".join(
                f"{event.replace('_', ' ')} {_shown(count)}" for event, count in counters.items()
            )
            lines.append(f"{name}: {shown}")
    return lines


def committees(nodes: Mapping[str, NodeView]) -> list[str]:
    """A line for each target that leads a committee: members, weights, the slowest, bytes."""
    lines = []
    for name, view in nodes.items():
        members = view.state.get("members")
        if not isinstance(members, dict) or not members:
            continue
        shown = [_member(member, facts) for member, facts in members.items()]
        size, proved = view.state.get("bytes_per_position"), view.state.get("proved_at_once")
        lines.append(
            f"{name}: committee of {', '.join(shown)}; {size} bytes per position, "
            f"{proved} of draws proved at once"
        )
    return lines


def _member(name: str, facts: object) -> str:
    if not isinstance(facts, dict):
        return name
    nodes = facts.get("nodes")
    where = "+".join(map(str, nodes)) if isinstance(nodes, list) and nodes else "away"
    return (
        f"{name} (weight {facts.get('weight')}, model {facts.get('model') or 'unknown'}, {where}, "
        f"{facts.get('round_ms')} ms, slowest in {facts.get('slowest')} rounds)"
    )


def _shown(count: object) -> str:
    if isinstance(count, dict):
        kinds = ", ".join(f"{kind} {number}" for kind, number in count.items())
        return f"({kinds})"
    return str(count)
