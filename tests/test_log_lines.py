"""Log lines have one shape, `what happened: key=value key=value`, and the lines of a round and of a
request tell what was."""

from __future__ import annotations

import ast
import asyncio
import logging
import re
from pathlib import Path

import pytest

import edgecosine
from edgecosine.balance.admission import AdmissionControl
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.request_record import RequestRecord, RequestTicket
from edgecosine.protocol.api.topics import Topics
from tests.node.links.wire_fixtures import run
from tests.support.cluster import Drafter, harness
from tests.support.engines import ScriptedDrafter, ScriptedTarget, babble
from tests.support.fakes import ScriptedService, request_manager

FORMAT = re.compile(r"[^=%]+(: (\w+=%[^ =]+)( \w+=%[^ =]+)*( advice=.*)?|: advice=.*)?", re.DOTALL)
"""Words, then keys with a value each; advice comes last, in words of its own."""

NUMBER = r"\d+(\.\d+)?"


def formats() -> list[tuple[str, str]]:
    """Every format of a log line, and where it stands."""
    found = []
    package = Path(edgecosine.__file__).parent
    for file in sorted(package.rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            match call:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="logger"), attr=level), args=args
                ) if level != "isEnabledFor":
                    template = args[1] if level == "log" else args[0]
                    where = f"{file.relative_to(package)}:{call.lineno}"
                    found.append((where, ast.literal_eval(template)))
    return found


def test_every_line_has_the_same_shape() -> None:
    assert len(formats()) > 50
    assert [(where, line) for where, line in formats() if not FORMAT.fullmatch(line)] == []


def read(line: str) -> tuple[str, dict[str, str]]:
    """What happened, and the values by key; a value goes on until the next key."""
    event, _, rest = line.partition(": ")
    return event, dict(re.findall(r"(\w+)=(.*?)(?= \w+=|$)", rest))


def lines_of(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, str]]:
    lines = (read(record.getMessage()) for record in caplog.records)
    return [values for name, values in lines if name == event]


def test_lines_of_a_round_and_of_a_request_tell_what_happened(
    caplog: pytest.LogCaptureFixture,
) -> None:
    language = babble()
    asked = Request("a", "1", "ask", "To be", max_tokens=30, ignore_eos=True)

    async def main() -> None:
        async with harness(ScriptedTarget(language), [Drafter(ScriptedDrafter(language))]) as home:
            answer = await home.answer(asked)
            metrics = answer.metrics
            rounds = lines_of(caplog, "round")
            assert len(rounds) == metrics.num_rounds
            assert all(set(each) == {"request", "drafters", "nodes", "accepted", "plan"}
                       for each in rounds)  # fmt: skip
            assert {each["request"] for each in rounds} == {"a/1"}
            assert sum(int(each["accepted"]) for each in rounds) == metrics.num_accepted_tokens
            assert sum(int(each["nodes"]) for each in rounds) == metrics.num_draft_tokens
            assert any(each["plan"].startswith("K=") for each in rounds)
            [line] = lines_of(caplog, "answered")
            assert line["request"] == "a/1"
            assert int(line["prompt_tokens"]) == answer.num_prompt_tokens
            assert int(line["tokens"]) == answer.num_tokens == 30
            assert int(line["rounds"]) == metrics.num_rounds
            assert int(line["accepted"]) == metrics.num_accepted_tokens
            assert re.fullmatch(NUMBER, line["elapsed_s"])
            assert line["finish"] == "length"
            assert "To be" not in caplog.text

    with caplog.at_level(logging.DEBUG, logger="edgecosine"):
        run(main())


def test_refused_and_failed_requests_have_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        service, topics = ScriptedService(max_sessions=1), Topics("home")
        service.hold("hm")
        admission = AdmissionControl(num_slots=1, max_queued=0)
        manager = request_manager(service, lambda _: None, admission)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(manager.run())
            await asyncio.sleep(0)
            for request_id in "12":
                ticket = RequestTicket(
                    "a", request_id, "completion", topics.response("a", request_id)
                )
                request = Request("a", request_id, "completion", "hm")
                manager.accept(RequestRecord(ticket, request))
                await asyncio.sleep(0)
            manager.cancel("1", "a")
            await manager.runner.idle()
            running.cancel()

    with caplog.at_level(logging.INFO, logger="edgecosine"):
        run(main())
    assert lines_of(caplog, "request refused") == [{"request": "a/2", "code": "overloaded"}]
    assert lines_of(caplog, "request finished") == [{"request": "a/1", "state": "cancelled"}]
