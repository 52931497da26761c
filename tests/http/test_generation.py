"""Requests over HTTP: one admission with MQTT, the same errors, streams and cancellation."""

from __future__ import annotations

import json

import openai
import pytest

from tests.support.fakes import ScriptedService
from tests.support.http import HttpHarness, http_harness
from tests.support.mqtt import run, running

CHAT = {"messages": [{"role": "user", "content": "or not"}]}


async def events(home: HttpHarness, path: str, body: dict[str, object]) -> list[str]:
    """The data of all events of a stream."""
    async with home.http.stream("POST", path, json=body) as reply:
        assert reply.status_code == 200, await reply.aread()
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in reply.aiter_lines()]
    return [line.removeprefix("data: ") for line in lines if line]


def test_stream_has_role_content_reason_and_end() -> None:
    async def story() -> None:
        async with http_harness() as home:
            *chunks, end = await events(home, "/v1/chat/completions", {**CHAT, "stream": True})
            deltas = [json.loads(chunk)["choices"][0] for chunk in chunks]
            assert [delta["delta"] for delta in deltas] == [
                {"role": "assistant", "content": ""}, {"content": "to be"}, {},
            ]  # fmt: skip
            assert [delta["finish_reason"] for delta in deltas] == [None, None, "stop"]
            assert end == "[DONE]"

    run(story())


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_disconnects_ends_its_session(stream: bool) -> None:
    async def story() -> None:
        service = ScriptedService()
        service.hold("or not")
        async with http_harness(service) as home:
            asking = home.http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
            async with running(asking):
                await service.begun(1)
            await service.ended(1)
            assert not home.home.gateway.admission.num_running

    run(story())


def test_refusal_has_the_error_object_and_status() -> None:
    async def story() -> None:
        async with http_harness() as home, home.openai() as client:
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(model="tiny", messages=[], temperature=0)
            assert refused.value.body == {
                "message": "messages are empty", "type": "invalid_request_error",
                "param": "messages", "code": "empty_prompt", "status": 400,
            }  # fmt: skip
            with pytest.raises(openai.NotFoundError) as missing:
                await client.chat.completions.create(model="gpt-99", messages=CHAT["messages"])
            assert missing.value.code == "model_not_found"

    run(story())
