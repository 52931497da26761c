"""A mistaken command ends with its reason, advice and a non-zero exit status."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edgecosine import zoo
from tests.support.mqtt import free_port

pytestmark = pytest.mark.timeout(120)


def _node(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgecosine", "node", "--no-mdns", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_directory_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = _node("--role", "drafter", "--model", str(tmp_path), "--broker", "none")
    assert done.returncode == 1
    assert "safetensors" in done.stderr


def test_error_for_an_unknown_model_lists_known_ones() -> None:
    done = _node("--role", "drafter", "--model", "no-such-model", "--broker", "none")
    assert done.returncode == 1
    assert "no-such-model" in done.stderr
    assert zoo.TARGET in done.stderr


def test_error_for_an_occupied_port_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = _node(
            "--role", "drafter", "--model", "ngram", "--broker", "none",
            "--listen", f"127.0.0.1:{port}",
        )  # fmt: skip
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_target_needs_a_broker_url() -> None:
    done = _node("--role", "target", "--model", "target", "--broker", "none")
    assert done.returncode == 2
    assert "MQTT" in done.stderr


def test_node_without_a_broker_logs_advice_and_keeps_running() -> None:
    url = f"mqtt://127.0.0.1:{free_port()}"
    command = [
        sys.executable, "-m", "edgecosine", "node", "--no-mdns", "--role", "target",
        "--model", "target", "--broker", url,
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "no broker, retrying" in line:
                    break
            else:
                pytest.fail("the node ended")
            assert "edgecosine broker" in line
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGINT)
            process.stderr.read()
        assert process.wait(20) == 130
