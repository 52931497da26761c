"""The settings of a node, validated once and then frozen.

Precedence: command line, environment (EDGECOSINE_…), TOML file, defaults.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgecosine.errors import ConfigError

Role = Literal["target", "drafter"]
Quantize = Literal["none", "nf4", "int8"]
Exactness = Literal["auto", "bitwise", "rounding"]
Weights = Literal["auto", "bfloat16", "int8"]

_IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_FILE_NAME = re.compile(r"[^/\\\x00]{1,250}\.gguf", re.IGNORECASE)
_SPAN = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
MAX_FILE_BYTES = 1 << 20
DRAIN_TIMEOUT_S = 30.0
STALL_TIMEOUT_S = 20.0
KEEPALIVE_S = 15


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node. Sizes in tokens, times in seconds; 0 threads or context: as much as fits.

    gguf         a file in the directory or hub model that `model` names
    listen       HOST:PORT; empty for any port, on all interfaces where there are credentials
    state_dir    directory of a target's journal; None: no journal
    identity_dir directory of the secret in MQTT client ids; None: `state_dir`, and without that the
                 secret is drawn at each start
    keep_answers seconds for which answers are kept for repeated requests
    credentials  directory written by `edgecosine cluster join`; None: links stay on this machine
    """

    role: Role
    model: str
    node_id: str
    cluster: str = "home"
    broker: str = field(default="mqtt://127.0.0.1:1883", repr=False)
    broker_ca: Path | None = None
    broker_certificate: Path | None = None
    broker_username: str = ""
    broker_password: str = field(default="", repr=False)
    broker_keepalive: int = KEEPALIVE_S
    listen: str = ""
    credentials: Path | None = None
    insecure: bool = False
    peers: tuple[str, ...] = ()
    mdns: bool = True
    quantize: Quantize = "none"
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    cores: tuple[int, ...] = ()
    slots: int = 8
    context: int = 0
    ballast: int = 1
    tensor_parallel: int = 1
    exactness: Exactness = "auto"
    weights: Weights = "auto"
    gguf: str = ""
    max_sessions: int = 8
    drain_timeout_s: float = DRAIN_TIMEOUT_S
    stall_timeout_s: float = STALL_TIMEOUT_S
    state_dir: Path | None = None
    identity_dir: Path | None = field(default=None, compare=False)
    keep_answers: int = 3600

    def __post_init__(self) -> None:
        for key in ("cluster", "node_id"):
            value = getattr(self, key)
            if not _IDENTIFIER.fullmatch(value):
                raise ConfigError(key, value, "1 to 64 of the characters A-Z a-z 0-9 _ . -")
        if self.role == "target" and self.quantize != "none":
            raise ConfigError("quantize", self.quantize, "none for a target; drafters may differ")
        if self.gguf and not _FILE_NAME.fullmatch(self.gguf):
            raise ConfigError("gguf", self.gguf, "the name of a .gguf file, without a directory")
        if self.tensor_parallel > 1:
            self._check_tensor_parallel()
        if self.role == "drafter" and self.exactness != "auto":
            allowed = "auto for a drafter; drafts never change an answer"
            raise ConfigError("exactness", self.exactness, allowed)
        if self.max_sessions > self.slots:
            raise ConfigError("max_sessions", self.max_sessions, f"at most slots = {self.slots}")
        if self.cores and (missing := set(self.cores) - os.sched_getaffinity(0)):
            allowed = f"processors of this machine: {_listed(os.sched_getaffinity(0))}"
            raise ConfigError("cores", _listed(missing), allowed)

    def _check_tensor_parallel(self) -> None:
        allowed = ""
        if self.role == "drafter":
            allowed = "1 for a drafter; only a target is shared by processes"
        elif self.ballast > 1:
            allowed = "1 with ballast"
        elif self.cores:
            allowed = "1 with cores, which pin this process alone; start it under taskset instead"
        if allowed:
            raise ConfigError("tensor_parallel", self.tensor_parallel, allowed)


def read_file(path: Path, known: Collection[str]) -> dict[str, Any]:
    """Read the settings of a TOML file, by option name.

    Raises ConfigError for a file that cannot be read and for keys that are not `known`.
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
    """Processor numbers of a list like `0,2-3`; empty text is no list.

    Raises ConfigError.
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
