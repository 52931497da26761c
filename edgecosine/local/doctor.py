"""Checks whether this machine is ready to run a node. Each check returns a finding and advice.

The checks change nothing and need no running cluster. They import neither torch nor the MQTT
client; the engine describes devices itself, if it is installed.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import ipaddress
import os
import platform
import shutil
import ssl
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgecosine import models
from edgecosine.discovery.interfaces import Interface, interfaces
from edgecosine.discovery.mdns import multicast_works
from edgecosine.engine.loading.control_groups import group_memory
from edgecosine.engine.loading.model_files import (
    fault_of,
    find_model,
    is_hub_name,
    zoo_models,
)
from edgecosine.errors import BrokerLost, ConfigError, EnrolmentError, ModelsNotInstalled
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.node.credentials.ca_server import utc_now
from edgecosine.node.links.link_policy import explain
from edgecosine.security.credentials import Credentials

MIN_PYTHON: Final = (3, 11)
MIN_MEMORY_BYTES: Final = 2 << 30
BROKER_PATIENCE_S: Final = 3.0
COMPILERS: Final = ("g++", "c++", "clang++")
_FEATURES: Final = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16")
_WIDE_FEATURES: Final = frozenset({"avx2", "asimd"})


@dataclass(frozen=True, slots=True)
class Check:
    """Name and finding of a check, and advice; without advice nothing needs to be fixed."""

    name: str
    finding: str
    advice: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether there is nothing to fix."""
        return not self.advice


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """The interpreter's version."""
    found = ".".join(map(str, version))
    wanted = ".".join(map(str, MIN_PYTHON))
    advice = "" if version >= MIN_PYTHON else f"install Python {wanted} or newer"
    return Check("python", found, advice)


def check_compiler(which: Callable[[str], str | None] = shutil.which) -> Check:
    """A C++ compiler, for the engine's kernels."""
    for name in COMPILERS:
        if path := which(name):
            return Check("compiler", path)
    advice = "install g++; without it the engine uses plain torch, which is slower"
    return Check("compiler", "none", advice)


def check_memory(
    meminfo: Path = Path("/proc/meminfo"), group: Callable[[], int | None] = group_memory
) -> Check:
    """Memory that is available to a model now."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) << 10
        what = "available"
    except (OSError, KeyError, ValueError):
        free, what = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "in total"
    if (limit := group()) is not None and limit < free:
        free, what = limit, "within the limit of the control group"
    finding = f"{free / 2**30:.1f} GiB {what}"
    if free >= MIN_MEMORY_BYTES:
        return Check("memory", finding)
    return Check("memory", finding, "stop other programs, or serve a smaller or quantised model")


def check_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Check:
    """Processor features that the engine's kernels use."""
    count = f"{os.cpu_count() or 1} processors"
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return Check("processor", f"{platform.machine()}, {count}")
    flags: set[str] = set()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags.update(value.split())
    known = [feature for feature in _FEATURES if feature in flags]
    finding = f"{count}: {', '.join(known) or 'no vector features'}"
    if flags and not flags & _WIDE_FEATURES:
        return Check(
            "processor", finding, "models run slowly here; the ngram drafter suits this machine"
        )
    return Check("processor", finding)


def check_engine(
    model: str | None = None, module: str = "edgecosine.engine.loading.device"
) -> list[Check]:
    """The engine's description of processors and GPUs."""
    try:
        described: list[str] = importlib.import_module(module).describe()
    except ImportError as error:
        finding = f"not installed ({error})"
        return [
            Check("engine", finding, "" if model == models.NGRAM else ModelsNotInstalled.INSTALL)
        ]
    return [Check("engine", line) for line in described]


def check_interfaces(found: Sequence[Interface] | None = None) -> Check:
    """Network interfaces and their addresses."""
    own = interfaces() if found is None else found
    finding = "; ".join(f"{one.name} {', '.join(one.addresses)}" for one in own)
    if not own:
        return Check("interfaces", "none", "bring the loopback interface up: ip link set lo up")
    addresses = [ipaddress.ip_address(address) for one in own for address in one.addresses]
    if all(address.is_loopback for address in addresses):
        finding += " (no network: only nodes on this machine are reachable)"
    return Check("interfaces", finding)


async def check_multicast(used: Sequence[str] | None = None) -> Check:
    """Whether nodes can discover each other: our own announcement must be received."""
    if await multicast_works(used):
        return Check("multicast", "our own announcement was received")
    return Check(
        "multicast",
        "our own announcement was not received",
        "allow UDP port 5353 to 224.0.0.251 and ff02::fb, or list the nodes: --peer HOST:PORT",
    )


async def check_broker(broker: BrokerAddress | None) -> Check:
    """Whether the MQTT broker accepts connections; without one, whether `up` could start one."""
    if broker is None:
        return _check_embedded_broker()
    advice = "start one with `edgecosine broker`, or name another with --broker URL"
    try:
        tls = broker.tls()
        async with asyncio.timeout(BROKER_PATIENCE_S):
            _, writer = await asyncio.open_connection(broker.host, broker.port, ssl=tls)
    except TimeoutError:
        reason = f"no answer within {BROKER_PATIENCE_S:g} s"
    except ssl.SSLError as error:
        reason, advice = explain(error), "compare its certificate with --broker-ca"
    except (OSError, BrokerLost) as error:
        reason = str(error)
    else:
        writer.close()
        how = "encrypted" if tls else "plain"
        return Check("broker", f"{broker} accepts {how} connections")
    return Check("broker", f"{broker} cannot be reached: {reason}", advice)


def check_credentials(directory: Path | None) -> Check:
    """Whether this machine's node is a member of a cluster."""
    if directory is None:
        return Check("credentials", "none: the node links only with nodes on this machine")
    try:
        credentials = Credentials.load(directory)
        credentials.trust()
    except (ConfigError, EnrolmentError) as error:
        return Check("credentials", str(error), "revoke this node, delete them, and join again")
    ours, until = credentials.identity, f"{credentials.not_after:%Y-%m-%d}"
    finding = f"{ours.role} {ours.node_id} of cluster {ours.cluster}, valid until {until}"
    if credentials.not_after <= utc_now():
        return Check("credentials", f"{finding}: expired", "delete them, and join again")
    return Check("credentials", finding)


def _check_embedded_broker() -> Check:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    if found := shutil.which("mosquitto", path=path):
        return Check("broker", f"`edgecosine broker` will start {found}")
    if importlib.util.find_spec("amqtt") is not None:
        return Check("broker", "`edgecosine broker` will start amqtt")
    return Check("broker", "none installed", "install mosquitto, or `pip install amqtt`")


def check_models(model: str | None, zoo: Path) -> list[Check]:
    """The files of one model, or of the whole zoo."""
    if model is None:
        names = [path.name for path in zoo_models(zoo)]
        if not names:
            return [Check("zoo", f"no models in {zoo}", "run scripts/train_zoo, or give --model")]
        return [_check_model(name, zoo) for name in names]
    return [_check_model(model, zoo)]


def _check_model(name: str, zoo: Path) -> Check:
    what = f"model {name}"
    if name == models.NGRAM:
        return Check(what, "needs no files")
    path = find_model(name, zoo)
    if path is None and is_hub_name(name):
        if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "TRUE"):
            return Check(what, "not downloaded, and HF_HUB_OFFLINE is set", "download it first")
        return Check(what, "not on this machine; the first start downloads it from the hub")
    if path is None and name in models.CATALOGUE:
        if models.CATALOGUE[name].terms:
            advice = f"edgecosine model fetch {name} --accept-terms"
            return Check(what, "not on this machine, and its terms must be accepted", advice)
        return Check(what, "not on this machine; the first start fetches it")
    if path is None:
        advice = "use a name of `edgecosine model list`, a directory, a GGUF file or a hub id"
        return Check(what, "not found", advice)
    try:
        fault = fault_of(path)
    except ModuleNotFoundError:  # reading GGUF files needs a package of the extra `models`
        return Check(what, f"{path}, not examined", ModelsNotInstalled.INSTALL)
    if fault is None:
        return Check(what, str(path))
    return Check(what, f"{path}: {fault}", "complete the files, or choose another model")


async def examine(
    *,
    model: str | None,
    broker: BrokerAddress | None,
    zoo: Path,
    used: Sequence[str] | None = None,
    credentials: Path | None = None,
) -> list[Check]:
    """All checks of this machine, the quick ones first.

    `used` lists the addresses of the interfaces to use, None for all.
    """
    checks = [check_python(), check_compiler(), check_memory(), check_processor()]
    checks += await asyncio.to_thread(check_engine, model)
    checks += check_models(model, zoo)
    checks += [check_interfaces(), check_credentials(credentials)]
    async with asyncio.TaskGroup() as group:
        multicast = group.create_task(check_multicast(used), name="doctor.multicast")
        reachable = group.create_task(check_broker(broker), name="doctor.broker")
    return [*checks, multicast.result(), reachable.result()]
