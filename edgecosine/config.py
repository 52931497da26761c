"""The settings of a node: frozen values, each declared and validated here.

Options come from the command line, then the environment (EDGECOSINE_…), then the TOML file, then
the defaults below.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from edgecosine.engine.dialect import TOOL_FORMATS
from edgecosine.engine.options import LoadOptions
from edgecosine.errors import ConfigError
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.protocol.wire.messages import Role

NodeRole = Role | Literal["gateway"]
"""A gateway has neither a model nor links."""

DEFAULT_BROKER: Final = "mqtt://127.0.0.1:1883"
DEFAULT_CLUSTER: Final = "home"
MAX_FILE_BYTES: Final = 1 << 20
DRAIN_TIMEOUT_S: Final = 30.0
STALL_TIMEOUT_S: Final = 20.0
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_FILE_NAME: Final = re.compile(r"[^/\\\x00]{1,250}\.gguf", re.IGNORECASE)
_LEAST_WEIGHT: Final = 1e-3
_SPAN: Final = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How a node is linked with others.

    listen       HOST:PORT; empty for any port, on all interfaces where there are credentials
    credentials  directory written by `edgecosine cluster join`; None: links stay on this machine
    insecure     without credentials, allow plain links beyond this machine
    peers        addresses to dial, HOST:PORT
    mdns         discover and announce nodes by multicast
    """

    listen: str = ""
    credentials: Path | None = None
    insecure: bool = False
    peers: tuple[str, ...] = ()
    mdns: bool = True


@dataclass(frozen=True, slots=True)
class StateOptions:
    """What a node keeps on disk.

    journal_dir   directory of a target's journal; None: no journal
    identity_dir  directory of the secret that client ids derive from; None: `journal_dir`, and
                  without that the secret is drawn at each start
    keep_answers  seconds for which finished answers are kept for duplicates of a request
    """

    journal_dir: Path | None = None
    identity_dir: Path | None = field(default=None, compare=False)
    keep_answers: int = 3600


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """How a node is reached over HTTP.

    listen       HOST:PORT; empty: not at all
    keys         file of the clients' keys; None: there are none
    certificate  file with a certificate chain and its key; None: plain text
    cors         origins of pages that may ask, beside the node's own
    """

    listen: str = ""
    keys: Path | None = None
    certificate: Path | None = None
    cors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CommitteeOptions:
    """Several models that answer as one.

    committee       for a target: name and weight of the other members; it has the rest of 1 itself,
                    and loads no model where there is none
    on_member_loss  for a target: wait for a member that is away, or go on without it
    listed          for a target: tokens that a member lists of each row at first
    member          for a member: its name; empty: the node's name. Replicas share one
    weight          for a member: its weight, which the target checks; 0: as the target says
    """

    committee: tuple[str, ...] = ()
    on_member_loss: Literal["wait", "renormalise"] = "wait"
    listed: int = 16
    member: str = ""
    weight: float = 0.0

    @property
    def weights(self) -> dict[str, float]:
        """The other members' weights by name.

        Raises ConfigError.
        """
        found: dict[str, float] = {}
        for entry in self.committee:
            name, _, number = entry.partition("=")
            try:
                weight = float(number)
            except ValueError:
                weight = 0.0
            if not _IDENTIFIER.fullmatch(name) or name in found or not 0.0 < weight < 1.0:
                raise ConfigError("committee", entry, "NAME=WEIGHT, each name once, as legal=0.5")
            found[name] = weight
        if sum(found.values()) > 1.0 + _LEAST_WEIGHT:
            listed = " ".join(self.committee)
            raise ConfigError("committee", listed, "weights with a sum of at most 1")
        return found

    @property
    def own_weight(self) -> float:
        """The weight of a target's own model; 0 where the other members have all of it."""
        rest = 1.0 - sum(self.weights.values())
        return rest if rest > _LEAST_WEIGHT else 0.0


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node. `broker` None: none, for a drafter or member; `cores`: processors to run on, empty
    for all; `tool_format`: a name in `TOOL_FORMATS`, or auto: as the chat template implies.

    Raises ConfigError for values that are wrong, or wrong together.
    """

    role: NodeRole
    node_id: str
    engine: LoadOptions
    cluster: str = DEFAULT_CLUSTER
    broker: BrokerAddress | None = field(
        default_factory=lambda: BrokerAddress.parse(DEFAULT_BROKER)
    )
    links: LinkOptions = LinkOptions()
    state: StateOptions = StateOptions()
    http: HttpOptions = HttpOptions()
    committee: CommitteeOptions = CommitteeOptions()
    cores: tuple[int, ...] = ()
    home_assistant: bool = False
    max_sessions: int = 8
    tool_format: str = "auto"
    max_queued: int = 64
    drain_timeout_s: float = DRAIN_TIMEOUT_S
    stall_timeout_s: float = STALL_TIMEOUT_S

    def __post_init__(self) -> None:
        for key in ("cluster", "node_id"):
            value = getattr(self, key)
            if not _IDENTIFIER.fullmatch(value):
                raise ConfigError(key, value, "1 to 64 of the characters A-Z a-z 0-9 _ . -")
        self._check_role()
        if self.role == "target" and self.broker is None:
            raise ConfigError("broker", "none", "an MQTT URL: requests come from there")
        self._check_committee()
        if self.tool_format not in {"auto", *TOOL_FORMATS}:
            names = ", ".join(("auto", *TOOL_FORMATS))
            raise ConfigError("tool_format", self.tool_format, names)
        self._check_engine()
        if self.cores and (missing := set(self.cores) - os.sched_getaffinity(0)):
            allowed = f"processors of this machine: {_listed(os.sched_getaffinity(0))}"
            raise ConfigError("cores", _listed(missing), allowed)

    @property
    def link_role(self) -> Role:
        """The role in greetings and credentials."""
        assert self.role != "gateway"
        return self.role

    def _check_role(self) -> None:
        if self.role == "gateway" and not self.http.listen:
            raise ConfigError("http", "none", "HOST:PORT for a gateway, which serves HTTP alone")
        if (self.role == "gateway") == bool(self.engine.model):
            allowed = "none for a gateway" if self.engine.model else f"--model of the {self.role}"
            raise ConfigError("model", self.engine.model, allowed)
        if self.role == "gateway" and self.broker is None:
            raise ConfigError("broker", "none", "an MQTT URL: targets are found there")
        if self.role in {"drafter", "member"} and self.http.listen:
            allowed = f"none for a {self.role}: targets take requests"
            raise ConfigError("http", self.http.listen, allowed)

    def _check_committee(self) -> None:
        names = self.committee.weights
        if names and self.role != "target":
            allowed = f"none for a {self.role}: the target names the members"
            raise ConfigError("committee", " ".join(self.committee.committee), allowed)
        if self.node_id in names:
            allowed = "names of other members; the target itself has the rest of the weight"
            raise ConfigError("committee", self.node_id, allowed)
        if self.role != "member" and (self.committee.member or self.committee.weight):
            named = self.committee.member or self.committee.weight
            raise ConfigError("member", named, f"none for a {self.role}: see --role member")

    def _check_engine(self) -> None:
        engine = self.engine
        if self.role != "drafter" and engine.quantize != "none":
            raise ConfigError(
                "quantize", engine.quantize, "none for a target or member; drafters may differ"
            )
        if engine.gguf and not _FILE_NAME.fullmatch(engine.gguf):
            raise ConfigError("gguf", engine.gguf, "the name of a .gguf file, without a directory")
        if engine.tensor_parallel > 1:
            self._check_tensor_parallel()
        if self.role == "drafter" and engine.exactness != "auto":
            allowed = "auto for a drafter; a draft token cannot change an answer"
            raise ConfigError("exactness", engine.exactness, allowed)
        if self.max_sessions > engine.slots:
            raise ConfigError("max_sessions", self.max_sessions, f"at most slots = {engine.slots}")

    def _check_tensor_parallel(self) -> None:
        allowed = ""
        if self.role == "drafter":
            allowed = "1 for a drafter; only a target is shared by processes"
        elif self.engine.ballast > 1:
            allowed = "1 with ballast"
        elif self.cores:
            allowed = "1 with cores, which pin this process alone; start it under taskset instead"
        if allowed:
            raise ConfigError("tensor_parallel", self.engine.tensor_parallel, allowed)


def read_file(path: Path, known: Collection[str]) -> dict[str, Any]:
    """The settings in a TOML file, by option name.

    Raises ConfigError for a file that cannot be read and for keys that are not in `known`.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError("config", str(path), f"a file of at most {MAX_FILE_BYTES} bytes")
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError("config", str(path), f"a readable TOML file ({error})") from error
    for key, value in settings.items():
        if key.replace("-", "_") not in known:
            raise ConfigError(key, value, f"one of {', '.join(sorted(known))}")
    return {key.replace("-", "_"): value for key, value in settings.items()}


def parse_cores(text: str) -> tuple[int, ...]:
    """The processor numbers in a list such as `0,2-3`, sorted; none for an empty text.

    Raises ConfigError for any other text.
    """
    cores: set[int] = set()
    for part in filter(None, text.split(",")):
        span = _SPAN.fullmatch(part)
        first, last = (int(span[1]), int(span[2] or span[1])) if span else (1, 0)
        if first > last:
            raise ConfigError("cores", text, "processor numbers, for example 0,2-3")
        cores.update(range(first, last + 1))
    return tuple(sorted(cores))


def _listed(cores: Collection[int]) -> str:
    return ",".join(map(str, sorted(cores)))
