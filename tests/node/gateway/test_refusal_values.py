"""Refusals are values: refused requests leave nothing in memory."""

from __future__ import annotations

import ast
import asyncio
import gc
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import edgecosine
from edgecosine import errors
from edgecosine.errors import RequestError
from edgecosine.protocol.api.mqtt_message import Incoming
from edgecosine.protocol.api.openai import RequestLimits
from edgecosine.protocol.api.parse_request import RefusedRequest, RequestParser
from edgecosine.protocol.api.request_record import RequestRecord
from edgecosine.protocol.api.topics import Topics
from tests.node.gateway.test_request_manager import Harness
from tests.support.fakes import ScriptedService
from tests.support.mqtt import run

HOME = Topics("home")
INTAKE = RequestParser(
    HOME, max_request_bytes=1 << 20, draw_id=lambda: "drawn", draw_seed=lambda: 7
)
_NUM_REFUSALS = 1000
_BODY_BYTES = 64 << 10
_MAX_KEPT_BYTES = 4 << 20


def ask(harness: Harness, payload: bytes) -> None:
    """What the gateway does with a publication."""
    message = Incoming(HOME.request("completion"), payload)
    match INTAKE.read("completion", message, RequestLimits()):
        case RequestRecord() as reading:
            harness.manager.accept(reading)
        case RefusedRequest(ticket, error):
            harness.manager.refusals.send(ticket, error)


def kept_bytes(harness: Harness, **fields: object) -> int:
    """Memory that is held after many refusals and was not before, without garbage collection."""
    payload = json.dumps(fields).encode()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(_NUM_REFUSALS):
            ask(harness, payload)
            harness.sent.clear()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        gc.enable()


def test_refused_requests_with_large_bodies_leave_nothing() -> None:
    async def scenario() -> None:
        service = ScriptedService()
        harness = Harness(service)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(harness.manager.run())
            await asyncio.sleep(0)
            service.hold("hm")
            ask(harness, b'{"client": "a", "id": "1", "prompt": "hm"}')
            await service.begun(1)
            large = "x" * _BODY_BYTES
            assert kept_bytes(harness, client="a", id="1", prompt=large) < _MAX_KEPT_BYTES
            assert kept_bytes(harness, client="a", id="2", prompt=[large, large]) < _MAX_KEPT_BYTES
            harness.manager.set_unavailable("its engine stands still")
            assert kept_bytes(harness, client="a", id="3", prompt=large) < _MAX_KEPT_BYTES
            harness.manager.drain()
            assert kept_bytes(harness, client="a", id="3", prompt=large) < _MAX_KEPT_BYTES
            assert len(service.requests) == 1
            task.cancel()

    run(scenario())


def test_refusal_and_error_convert_to_each_other() -> None:
    error = RequestError("no", code="c", parameter="p", status=418, retry_after_s=2.0)
    again = error.refusal.error()
    assert again is not error
    assert again.refusal == error.refusal
    assert (str(again), again.code, again.retry_after_s) == ("no", "c", 2.0)


def test_no_exception_is_kept_for_several_raises() -> None:
    """One that is made where a module or a class is made would be raised again and again."""
    names = {name for name, value in vars(errors).items() if isinstance(value, type)}
    raised = {name for name in names if issubclass(vars(errors)[name], Exception)}
    root = Path(edgecosine.__file__).parent
    found = [
        f"{path.relative_to(root)}:{call.lineno}"
        for path in root.rglob("*.py")
        for call in _calls_at_import(ast.parse(path.read_text()))
        if isinstance(call.func, ast.Name)
        and (call.func.id in raised or call.func.id.endswith(("Error", "Exception")))
    ]
    assert found == []


def _calls_at_import(tree: ast.Module) -> Iterator[ast.Call]:
    bodies = [tree.body, *(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
    for body in bodies:
        for statement in body:
            if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
                yield from (n for n in ast.walk(statement.value) if isinstance(n, ast.Call))
