"""A gateway with an HTTP frontend in front of a scripted service, and clients of it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from edgecosine.http.frontend import HttpFrontend, RouteGroup
from edgecosine.local.embedded_broker import EmbeddedBroker
from tests.support.fakes import ScriptedService
from tests.support.mqtt import GatewayHarness, gateway_harness, running


@dataclass
class HttpHarness:
    """A gateway, its HTTP frontend, and an HTTP client."""

    home: GatewayHarness
    frontend: HttpFrontend
    http: httpx.AsyncClient

    @property
    def service(self) -> ScriptedService:
        """The service behind the gateway."""
        return self.home.service

    def openai(self, **options: Any) -> openai.AsyncOpenAI:
        """An OpenAI client of the frontend."""
        fields = {"api_key": "none", "max_retries": 0, **options}
        return openai.AsyncOpenAI(base_url=f"{self.http.base_url}/v1", **fields)


def listening_socket() -> socket.socket:
    """A socket bound to a free port of the loopback interface."""
    return socket.create_server(("127.0.0.1", 0))


@contextlib.asynccontextmanager
async def http_harness(
    service: ScriptedService | None = None,
    *,
    more: Sequence[RouteGroup] = (),
    broker: EmbeddedBroker | None = None,
    max_queued: int = 64,
    node_id: str = "t1",
    **options: Any,
) -> AsyncIterator[HttpHarness]:
    """Run a gateway with an HTTP frontend; `more` are route groups beside the usual ones, `options`
    those of the frontend."""
    frontend = HttpFrontend([listening_socket()], more, **options)
    url = f"http://127.0.0.1:{frontend.port}"
    async with (
        gateway_harness(service, broker=broker, max_queued=max_queued, node_id=node_id) as home,
        running(frontend.run()),
        httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as client,
    ):
        frontend.backend.open(home.gateway.local)
        yield HttpHarness(home, frontend, client)
