"""A mistaken command ends with its reason, advice and a non-zero exit status."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from edgecosine import zoo
from tests.support.forked_nodes import spawn
from tests.support.mqtt import free_port

pytestmark = pytest.mark.timeout(120)
_NODE = (sys.executable, "-m", "edgecosine", "node", "--no-mdns")


def _node(log: Path, *options: str) -> tuple[int, str]:
    """The exit status of `edgecosine node` with these options, and what it printed."""

    async def ended() -> int:
        return await (await spawn((*_NODE, *options), log)).wait()

    return asyncio.run(ended()), log.read_text()


def _first(lines: Iterable[str], part: str) -> str:
    """The first line with this part; empty where there is none."""
    return next((line for line in lines if part in line), "")


def test_directory_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    log = tmp_path / "log"
    status, printed = _node(log, "--role", "drafter", "--model", str(tmp_path), "--broker", "none")
    assert status == 1
    assert "safetensors" in printed


def test_error_for_an_unknown_model_lists_known_ones(tmp_path: Path) -> None:
    log = tmp_path / "log"
    status, printed = _node(log, "--role", "drafter", "--model", "no-such", "--broker", "none")
    assert status == 1
    assert "no-such" in printed
    assert zoo.TARGET in printed


def test_error_for_an_occupied_port_names_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, printed = _node(
            tmp_path / "log", "--role", "drafter", "--model", "ngram", "--broker", "none",
            "--listen", f"127.0.0.1:{port}",
        )  # fmt: skip
    assert status == 1
    assert f"127.0.0.1:{port}" in printed
    assert "Traceback" not in printed


def test_target_needs_a_broker_url(tmp_path: Path) -> None:
    words = ("--role", "target", "--model", "target", "--broker", "none")
    status, printed = _node(tmp_path / "log", *words)
    assert status == 2
    assert "MQTT" in printed


def test_node_without_a_broker_logs_advice_and_keeps_running(tmp_path: Path) -> None:
    log = tmp_path / "log"
    os.mkfifo(log)

    async def story() -> None:
        words = ("--role", "target", "--model", "target", "--broker")
        node = await spawn((*_NODE, *words, f"mqtt://127.0.0.1:{free_port()}"), log)
        with await asyncio.to_thread(log.open) as lines:
            advice = await asyncio.to_thread(_first, lines, "no broker, retrying")
            assert "edgecosine broker" in advice
            assert node.returncode is None
            node.send_signal(signal.SIGINT)
            await asyncio.to_thread(lines.read)
        assert await node.wait() == 130

    asyncio.run(story())
