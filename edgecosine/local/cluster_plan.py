"""The plan of a cluster on one machine: its nodes and their options."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecosine.engine.options import Exactness
from edgecosine.mqtt.broker_address import BrokerAddress


@dataclass(frozen=True, slots=True)
class LocalNode:
    """One node: its id and options of `edgecosine node`, which override the cluster's."""

    node_id: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """A cluster to run. Without a broker URL the embedded broker is started."""

    cluster: str
    target: LocalNode
    drafters: tuple[LocalNode, ...]
    broker: str | None = None
    broker_port: int = 1883
    access: BrokerAddress | None = None
    """Address of a broker with access options, which nodes read from the environment."""


def local_plan(
    target: str,
    drafters: Sequence[str],
    *,
    cluster: str,
    ballast: int,
    target_cores: str,
    drafter_cores: str,
    broker: str | None,
    broker_port: int,
    exactness: Exactness = "auto",
    target_device: str = "auto",
    drafter_devices: Sequence[str] = ("auto",),
    access: BrokerAddress | None = None,
    http: str = "none",
) -> ClusterPlan:
    """A plan with one node for each model. Core lists as for `edgecosine node --cores`; devices as
    for `--device`, assigned to the drafters in rotation."""
    tail = secrets.token_hex(2)
    options = (
        "--model", target, "--role", "target", "--ballast", str(ballast), "--exactness", exactness,
        "--device", target_device, "--http", http,
    )  # fmt: skip
    names = distinct(["target", *map(node_name, drafters)])
    return ClusterPlan(
        cluster=cluster,
        target=LocalNode(f"target-{tail}", (*options, "--cores", target_cores)),
        drafters=tuple(
            LocalNode(
                f"{name}-{tail}", (*_drafter_options(model, drafter_cores), "--device", device)
            )
            for name, model, device in zip(
                names[1:], drafters, itertools.cycle(drafter_devices), strict=False
            )
        ),
        broker=broker,
        broker_port=broker_port,
        access=access,
    )


def _drafter_options(model: str, cores: str) -> tuple[str, ...]:
    return ("--model", model, "--role", "drafter", "--cores", cores)


def node_name(model: str) -> str:
    """The part of a node id that names its model."""
    name = Path(os.path.normpath(Path(model).absolute())).name
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)[:40] or "model"


def distinct(names: Sequence[str]) -> list[str]:
    """The names made unique, ignoring case, by numbers from 2 on."""
    taken: dict[str, None] = {}
    for name in names:
        numbered = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
        taken[next(n for n in numbered if n.lower() not in map(str.lower, taken))] = None
    return list(taken)
