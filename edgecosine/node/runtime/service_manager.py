"""Reports the state of a node that systemd started, by the protocol of sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket

logger = logging.getLogger(__name__)


def notify_ready(status: str) -> None:
    """Report that the node has started; `systemctl status` shows `status`."""
    _notify(f"READY=1\nSTATUS={status}")


def notify_status(status: str) -> None:
    """Report the state of the node."""
    _notify(f"STATUS={status}")


def notify_stopping() -> None:
    """Report that the node drains."""
    _notify("STOPPING=1\nSTATUS=draining")


def _notify(message: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # an abstract socket of Linux
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as channel:
            channel.connect(address)
            channel.send(message.encode()[:4096])
    except OSError as error:
        logger.warning("service manager not notified: reason=%s", error)
