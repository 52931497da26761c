"""The parts of `scripts/gpu`: requirements, commands and results."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

from edgecosine.lab.gpu.bundle import ROOT

_ENGINE: Final = (
    "torch", "transformers", "accelerate", "safetensors", "numpy", "gguf", "msgspec", "rich",
)  # fmt: skip
_COMMANDS: Final = (
    *_ENGINE, "click", "uvloop", "aiomqtt", "msgpack", "zeroconf", "ifaddr", "cryptography",
)  # fmt: skip
_OPTIONAL: Final = ("bitsandbytes",)
_ZOO: Final = ("--lab", "--prompts", "2", "--max-tokens", "96")
_REAL: Final = ("--prompts", "2", "--max-tokens", "96")
_TOY: Final = ("--lab", "--prompts", "1", "--max-tokens", "8", "--ballast", "1")
_TRAINING_SHARE: Final = 0.9
"""Share of the part's time for training; starting and loading take the rest."""


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """Device (in torch's spelling), folders and models of a run."""

    device: str
    out: Path
    scratch: Path
    is_quick: bool
    target: str
    has_target: bool


@dataclass(frozen=True, slots=True)
class GpuPart:
    """One child process of the run.

    `share` is its relative share of the time, `modules` are the Python modules that it needs,
    `command` receives its time limit in seconds, and `finish` writes its JSON.
    """

    name: str
    description: str
    share: int
    modules: tuple[str, ...]
    command: Callable[[GpuPlan, float], list[str]]
    missing: Callable[[GpuPlan], str] = lambda _: ""
    """Reason why it cannot run, other than modules; empty when it can."""
    finish: Callable[[GpuPlan], None] = lambda _: None

    def obstacle(self, plan: GpuPlan) -> str:
        """Reason why it is left out; empty when it can run."""
        absent = [name for name in self.modules if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else self.missing(plan)


def absent_options() -> list[str]:
    """Optional packages that are missing."""
    return [name for name in _OPTIONAL if importlib.util.find_spec(name) is None]


def _tests(plan: GpuPlan, _: float) -> list[str]:
    # Other versions of packages emit other warnings.
    return [
        sys.executable, "-m", "pytest", str(ROOT / "tests" / "engine" / "cuda" / "test_gpu.py"),
        "--rootdir", str(ROOT), "-p", "no:cacheprovider", "-W", "default", "--tb", "short",
        "--junit-xml", str(plan.scratch / "tests.xml"),
    ]  # fmt: skip


def _no_tests(_: GpuPlan) -> str:
    return "" if (ROOT / "tests").is_dir() else "no tests beside the package"


def _finish_tests(plan: GpuPlan) -> None:
    junit = ET.parse(plan.scratch / "tests.xml")  # noqa: S314 -- our own child's
    cases = [_case(one) for one in junit.iter("testcase")]
    found: dict[str, Any] = {
        result: sum(case["outcome"] == result for case in cases)
        for result in ("passed", "failed", "error", "skipped")
    }
    _write(plan.out / "tests.json", {**found, "cases": cases})


def _case(element: ET.Element) -> dict[str, Any]:
    result = next((e for e in element if e.tag in {"failure", "error", "skipped"}), None)
    return {
        "name": element.get("name"),
        "outcome": "passed" if result is None else result.tag.replace("failure", "failed"),
        "seconds": float(element.get("time", "0")),
        "message": "" if result is None else (result.get("message") or "").split("\n")[0],
        **{str(p.get("name")): p.get("value") for p in element.iter("property")},
    }


def _bench(plan: GpuPlan, _: float) -> list[str]:
    quick = ["--quick"] if plan.is_quick else []
    return _edgecosine(plan, "bench.json", "bench", "gpu", "--device", plan.device, *quick)


def _train(plan: GpuPlan, seconds: float) -> list[str]:
    return [
        sys.executable, "-m", "edgecosine.lab.distill.train", "--device", plan.device,
        "--minutes", f"{seconds / 60 * _TRAINING_SHARE:.2f}", "--target", plan.target,
        "--scratch", str(plan.scratch / "drafters"), "--out", str(plan.out / "drafters"),
        *(["--quick"] if plan.is_quick else []),
    ]  # fmt: skip


def _no_target(plan: GpuPlan) -> str:
    return "" if plan.has_target else f"{plan.target} is not on this machine: see --pack"


def _finish_train(plan: GpuPlan) -> None:
    shutil.copy(plan.scratch / "drafters" / "report.json", plan.out / "train.json")


def _zoo(plan: GpuPlan, _: float) -> list[str]:
    if plan.is_quick:
        from edgecosine import zoo

        one = ("--drafter", zoo.drafter_names()[0])
        return _edgecosine(plan, "zoo.json", "demo", *_TOY, *one, *_devices(plan))
    return _edgecosine(plan, "zoo.json", "demo", *_ZOO, *_devices(plan))


def _cluster(plan: GpuPlan, _: float) -> list[str]:
    trained = sorted((plan.out / "drafters").glob("*.gguf"))
    drafters = [word for path in trained for word in ("--drafter", str(path))]
    return _edgecosine(plan, "cluster.json", "demo", *_REAL, *drafters, *_devices(plan))


def _no_broker(_: GpuPlan) -> str:
    has_one = shutil.which("mosquitto") or importlib.util.find_spec("amqtt")
    return "" if has_one else "no MQTT broker: neither mosquitto nor amqtt is installed"


def _no_cluster(plan: GpuPlan) -> str:
    if plan.is_quick:
        return "there is no toy model for it: see zoo"
    return _no_broker(plan) or _no_target(plan)


def _devices(plan: GpuPlan) -> list[str]:
    """The target on the GPU; drafters alternately on the GPU and on the CPU."""
    return [
        "--device", plan.device, "--drafter-device", plan.device, "--drafter-device", "cpu",
    ]  # fmt: skip


def _edgecosine(plan: GpuPlan, report: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "edgecosine", *words, "--json", str(plan.out / report)]


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


PARTS: Final = {
    part.name: part
    for part in (
        GpuPart("tests", "the GPU tests", 2, (*_ENGINE, "pytest", "pytest_timeout"), _tests,
             _no_tests, _finish_tests),
        GpuPart("bench", "`edgecosine bench gpu`", 2, _COMMANDS, _bench),
        GpuPart("train", "the drafters' recipe", 5, _ENGINE, _train, _no_target, _finish_train),
        GpuPart("zoo", "a cluster of the zoo's models", 1, _COMMANDS, _zoo, _no_broker),
        GpuPart("cluster", "a cluster of the real model, with drafters trained here or packaged", 2,
             _COMMANDS, _cluster, _no_cluster),
    )
}  # fmt: skip
