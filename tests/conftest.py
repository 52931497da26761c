"""Fixtures and hooks of all tests."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

import pytest

with contextlib.suppress(ModuleNotFoundError):  # GPU tests run without it, too
    from hypothesis import HealthCheck, settings

    # No test fails because the machine is slow.
    settings.register_profile(
        "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("untimed")

os.environ["HF_HUB_OFFLINE"] = "1"
"""No test connects to the model hub. The hub's client reads this when it is imported."""
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
"""Waiting threads of torch would otherwise spin, on processors that other tests need. OpenMP reads
this when torch is imported."""

_INSTALLABLE = re.compile("mosquitto|compiler|no ip command")
"""Reasons to skip a test that `scripts/test --install-tools` removes on Debian as root."""
_LONGEST: Final = (
    "engine/tensor_parallel/test_worker_failures.py", "engine/loading/test_selftest.py",
    "engine/tensor_parallel/test_tensor_parallel.py", "lab/test_network.py",
    "lab/test_simulation.py", "node/durability/test_recovery.py",
    "engine/target/test_distribution.py", "engine/cpu/test_blocks.py",
    "lab/test_exactness_check.py", "lab/test_distill.py", "lab/test_transformers_process.py",
    "node/gateway/test_request_isolation.py", "node/gateway/test_refusal_values.py",
    "cli/test_exit_status.py", "cli/test_secured_setup.py", "cli/test_mqtt_commands.py",
    "engine/cuda/test_padded_model.py", "engine/target/test_target.py",
    "cluster/test_lab_cluster.py", "cluster/test_planner_adapts.py", "cluster/test_takeover.py",
    "cluster/test_real_model.py", "cluster/test_crash_recovery.py", "cluster/test_exact_text.py",
    "cluster/test_chaos.py", "cluster/test_restart.py",
)  # fmt: skip
"""Files that run first, so that none of them is the last one on a single processor."""
_REQUIRES_TOOLS = bool(os.environ.get("EDGECOSINE_TESTS_REQUIRE_TOOLS"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first; the others keep their order."""
    root = Path(__file__).parent
    ranks = {root / name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that is skipped for a missing tool, where tools are required."""
    report = yield
    _fail_without_tool(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a file that skips all its tests."""
    report = yield
    _fail_without_tool(report)
    return report


def _fail_without_tool(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = str(report.longrepr)
    if _REQUIRES_TOOLS and report.skipped and _INSTALLABLE.search(reason):
        report.outcome = "failed"
        report.longrepr = f"a tool is missing, so this test cannot run: {reason}"


@pytest.fixture(autouse=True, scope="session")
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nodes, including those that are processes, keep their state in a temporary directory."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state", numbered=True))


@pytest.fixture(autouse=True, scope="session")
def _handle_interrupts() -> None:
    """A shell makes background processes ignore SIGINT, and their children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _restore_log_level() -> Iterator[None]:
    """A command that runs in this process would set the log level of later tests."""
    log = logging.getLogger("edgecosine")
    level = log.level
    yield
    log.setLevel(level)
