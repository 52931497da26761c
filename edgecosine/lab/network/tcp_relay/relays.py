"""A network without root: all hosts are this machine, and relays delay the traffic between them."""

from __future__ import annotations

import contextlib
import sys

from edgecosine.discovery.peer import Address
from edgecosine.errors import LabError
from edgecosine.lab.line_process import LineProcess, line_process
from edgecosine.lab.network.conditions import NetworkConditions
from edgecosine.lab.network.hosts import Host, Network, send_order
from edgecosine.lab.network.traffic_messages import Open, Plug

LOOPBACK = "127.0.0.1"


class RelayNetwork(Network):
    """Carries TCP only, without loss, duplication and multicast, so that hosts need each other's
    addresses."""

    has_multicast = False

    async def address(self, of: Host, port: int, seen_from: Host | None = None) -> Address:
        """A port of loopback that a relay forwards to the host's server."""
        order = Open(of.address, port, seen_from.name if seen_from else "", of.name)
        answer = await send_order(self.traffic, order)
        return Address(LOOPBACK, answer["port"])

    async def _open(self, stack: contextlib.AsyncExitStack) -> LineProcess:
        command = (sys.executable, "-m", "edgecosine.lab.network.tcp_relay.relay", str(self._seed))
        return await stack.enter_async_context(line_process("the relay", command, self._cores))

    async def _join(self, name: str, conditions: NetworkConditions) -> Host:
        self._check(conditions)
        await send_order(self.traffic, Plug(name, conditions))
        return Host(self, name, LOOPBACK)

    def _entry(self, host: Host) -> tuple[str, ...]:
        return ()

    def _check(self, conditions: NetworkConditions) -> None:
        if conditions.loss:
            raise LabError(
                "a relay cannot lose frames: loss needs network namespaces, that is, root"
            )
        if conditions.duplication:
            raise LabError(
                "a relay cannot duplicate frames: that needs network namespaces, that is, root"
            )
