"""A node under a service manager: it reports when it is ready, and drains on SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from edgecosine.cli.exit_status import TERMINATED


def test_node_reports_that_it_is_ready_and_that_it_stops(tmp_path: Path) -> None:
    address = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(60)
        command = [
            sys.executable, "-m", "edgecosine", "node", "--role=drafter", "--model=ngram",
            "--broker=none", "--credentials=none", "--no-mdns", f"--state-dir={tmp_path}",
        ]  # fmt: skip
        node = subprocess.Popen(
            command, env={**os.environ, "NOTIFY_SOCKET": address}, stderr=subprocess.DEVNULL
        )
        try:
            ready, status = manager.recv(4096).split(b"\n")
            assert ready == b"READY=1"
            assert b"ngram" in status
            node.send_signal(signal.SIGTERM)
            assert manager.recv(4096).startswith(b"STOPPING=1\n")
            assert node.wait(30) == TERMINATED
        finally:
            node.kill()
            node.wait()
