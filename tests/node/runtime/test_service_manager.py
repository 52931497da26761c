"""systemd hears when a node is ready, and when it drains."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecosine.node.runtime.service_manager import notify_ready, notify_status, notify_stopping


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The socket of a service manager."""
    name = f"@edgecosine-{tmp_path.name}" if request.param == "abstract" else f"{tmp_path}/notify"
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(name.replace("@", "\0", 1))
        channel.settimeout(5)
        yield channel


def test_states_of_a_node_arrive(manager: socket.socket) -> None:
    notify_ready("serving tiny")
    notify_status("unavailable: the engine hangs")
    notify_stopping()
    assert manager.recv(4096) == b"READY=1\nSTATUS=serving tiny"
    assert manager.recv(4096) == b"STATUS=unavailable: the engine hangs"
    assert manager.recv(4096) == b"STOPPING=1\nSTATUS=draining"


@pytest.mark.parametrize("address", ["", "vsock:2:1"])
def test_nothing_is_sent_without_a_socket(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify_ready("serving tiny")
    assert not caplog.records


def test_manager_that_is_gone_is_logged_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/missing")
    with caplog.at_level(logging.WARNING):
        notify_ready("serving tiny")
    assert "service manager not notified" in caplog.text
