"""The observer of a chaos run records new connections of the gateway and of its own."""

from __future__ import annotations

import contextlib
import itertools

import pytest

from edgecosine.lab.chaos.checker import RequestHistory
from edgecosine.lab.chaos.observer import Observer
from edgecosine.local.embedded_broker import EmbeddedBroker
from tests.lab.chaos_cases import final
from tests.support.mqtt import HOME, free_port, listening, needs_mosquitto, run

pytestmark = [needs_mosquitto, pytest.mark.timeout(60)]


def test_observer_records_reconnections_of_the_gateway_and_its_own() -> None:
    async def history() -> None:
        port, moments = free_port(), itertools.count(1)
        histories = {"a/1": RequestHistory(("x",)), "a/2": RequestHistory(("x",))}
        observer = Observer(f"mqtt://127.0.0.1:{port}", "home", histories, lambda: next(moments))
        async with contextlib.AsyncExitStack() as stack:
            async with EmbeddedBroker(port=port) as broker:
                await stack.enter_async_context(observer.listening())
                assert observer.connections == []
                async with listening(broker) as gateway:
                    gateway.send(HOME.info, {"contract": 1}, retain=True)
                    gateway.send(HOME.response("a", "1"), final("x"))
                    await observer.finals(["a/1"], 0.0)
                assert len(observer.connections) == 1
            async with EmbeddedBroker(port=port) as broker, listening(broker) as gateway:
                gateway.send(HOME.response("a", "2"), final("x"), retain=True)
                await observer.finals(["a/2"], 0.0)
                [first, second] = observer.connections
                assert first[0] < histories["a/1"].received[0].at_s < second[0]
                assert second[0] < histories["a/2"].received[0].at_s
                await stack.aclose()

    run(history())
