"""Requests over HTTP: one admission with MQTT, the same errors, streams and cancellation."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from edgecosine.http import replies
from edgecosine.http.body import MAX_BODY_BYTES
from edgecosine.lab.bench.http.stream_client import StreamClient
from tests.support.fakes import ScriptedService
from tests.support.http import HttpHarness, http_harness
from tests.support.mqtt import HOME, run, run_patiently, running

CHAT = {"messages": [{"role": "user", "content": "or not"}]}
CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
REPEATED = {"idempotency-key": "same"}


async def events(home: HttpHarness, path: str, body: dict[str, Any]) -> list[Any]:
    """All events of a stream before its end, read as JSON."""
    async with home.http.stream("POST", path, json={**body, "stream": True}) as reply:
        assert reply.status_code == 200, await reply.aread()
        assert reply.headers["content-type"].startswith("text/event-stream")
        data = [line.removeprefix("data: ") async for line in reply.aiter_lines() if line]
    assert data[-1] == "[DONE]"
    return [json.loads(line) for line in data[:-1]]


def test_stream_has_role_contents_and_reason() -> None:
    async def scenario() -> None:
        async with http_harness() as home:
            chunks = await events(home, CHATS, CHAT)
            assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
                {"role": "assistant", "content": ""}, {"content": "to be"}, {},
            ]  # fmt: skip
            reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
            assert reasons == [None, None, "stop"]
            assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1

    run(scenario())


def test_usage_comes_last_or_with_each_part() -> None:
    async def scenario() -> None:
        async with http_harness() as home:
            asked = {"prompt": "or not", "stream_options": {"include_usage": True}}
            *chunks, last = await events(home, COMPLETIONS, asked)
            usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            assert (last["choices"], last["usage"]) == ([], usage)
            assert last["metrics"]["speculative_decoding"]["num_draft_tokens"] == 6
            assert {chunk["usage"] for chunk in chunks} == {None}
            asked["stream_options"] = {"continuous_usage_stats": True}
            *parts, end = await events(home, COMPLETIONS, asked)
            assert [part["usage"] for part in parts] == [usage]
            assert "usage" not in end

    run(scenario())


def test_stream_folded_by_a_client_is_the_whole_answer() -> None:
    async def scenario() -> None:
        words = ("Größe", " \n", "🙂🙂", "", " end")
        async with http_harness(ScriptedService(words)) as home, home.openai() as client:
            for n in (1, 3):
                chat = client.chat.completions
                whole = await chat.create(model="tiny", n=n, **CHAT)
                async with chat.stream(model="tiny", n=n, **CHAT) as stream:
                    folded = await stream.get_final_completion()
                assert _told(folded) == _told(whole)
                assert len(whole.choices) == n
                *chunks, _ = await events(home, COMPLETIONS, {"prompt": "x", "n": n})
                texts = [""] * n
                for chunk in chunks:
                    texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
                assert texts == ["".join(words)] * n

    run(scenario())


def _told(answer: Any) -> list[tuple[int, str, str]]:
    return [(each.index, each.message.content, each.finish_reason) for each in answer.choices]


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_disconnects_ends_its_session(stream: bool) -> None:
    async def scenario() -> None:
        service = ScriptedService()
        service.hold("or not")
        async with http_harness(service) as home:
            async with running(home.http.post(CHATS, json={**CHAT, "stream": stream})):
                await service.begun(1)
            await service.ended(1)
            assert not home.home.gateway.admission.num_running

    run(scenario())


def test_refusal_has_the_error_object_and_status() -> None:
    async def scenario() -> None:
        async with http_harness() as home, home.openai() as client:
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(model="tiny", messages=[], temperature=0)
            assert refused.value.body == {
                "message": "messages are empty", "type": "invalid_request_error",
                "param": "messages", "code": "empty_prompt", "status": 400,
            }  # fmt: skip
            assert refused.value.response.headers["x-should-retry"] == "false"
            assert refused.value.request_id == refused.value.response.json()["id"]
            with pytest.raises(openai.NotFoundError) as missing:
                await client.chat.completions.create(model="gpt-99", **CHAT)
            assert missing.value.code == "model_not_found"
            for reply in (await home.http.get("/v2"), await home.http.get(CHATS)):
                assert reply.json()["error"]["code"] == "unknown_url"
                assert reply.status_code in (404, 405)

    run(scenario())


def test_overload_and_drain_are_refused_with_the_time_to_retry() -> None:
    async def scenario() -> None:
        service = ScriptedService(max_sessions=1)
        held = service.hold("or not")
        async with http_harness(service, max_queued=2) as home:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(home.http.post(CHATS, json=CHAT)) for _ in range(5)]
                await service.begun(1)
                while sum(task.done() for task in asked) < 3:
                    await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                    asked.sort(key=lambda task: task.done())
                    await asyncio.sleep(0)
                held.set()
            refused = [task.result() for task in asked if task.result().status_code != 200]
            assert refused
            for reply in refused:
                assert reply.json()["error"]["code"] == "overloaded"
                assert int(reply.headers["retry-after"]) >= 1
                assert reply.headers["x-should-retry"] == "true"
            await home.home.gateway.drain()
            for path in ("/health", "/ready"):
                reply = await home.http.get(path)
                assert (reply.status_code, reply.json()["error"]["code"]) == (503, "draining")

    run(scenario())


def test_repeated_request_is_run_once() -> None:
    async def scenario() -> None:
        service = ScriptedService()
        held = service.hold("or not")
        async with http_harness(service) as home:
            async with asyncio.TaskGroup() as group:
                asking = [
                    group.create_task(home.http.post(CHATS, json=CHAT, headers=REPEATED))
                    for _ in range(3)
                ]
                await service.begun(1)
                held.set()
            later = await home.http.post(CHATS, json=CHAT, headers=REPEATED)
            assert len(service.requests) == 1
            assert {task.result().content for task in asking} == {later.content}
            assert later.headers["x-request-id"] == "same"
            other = await home.http.post(COMPLETIONS, json={"prompt": "x"}, headers=REPEATED)
            assert (other.status_code, other.json()["error"]["code"]) == (409, "duplicate_id")

    run(scenario())


def test_request_that_its_client_left_runs_again_when_repeated() -> None:
    async def scenario() -> None:
        service = ScriptedService()
        held = service.hold("or not")
        async with http_harness(service) as home:
            async with running(home.http.post(CHATS, json=CHAT, headers=REPEATED)):
                await service.begun(1)
            await service.ended(1)
            held.set()
            again = await home.http.post(CHATS, json=CHAT, headers=REPEATED)
            assert (again.status_code, len(service.requests)) == (200, 2)

    run(scenario())


def test_error_after_the_headers_is_the_last_event() -> None:
    async def scenario() -> None:
        service = ScriptedService()
        service.errors["or not"] = RuntimeError("broken")
        async with http_harness(service) as home, home.openai() as client:
            stream = await client.chat.completions.create(model="tiny", stream=True, **CHAT)
            with pytest.raises(openai.APIError, match="serving this request failed") as failed:
                async for _ in stream:
                    pass
            assert failed.value.code == "internal_error"

    run(scenario())


def test_stream_without_text_has_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "PING_S", 0.05)

    async def scenario() -> None:
        service = ScriptedService()
        held = service.hold("or not")
        body = {**CHAT, "stream": True}
        async with (
            http_harness(service) as home,
            home.http.stream("POST", CHATS, json=body) as reply,
        ):
            lines = reply.aiter_lines()
            while await anext(lines) != ": ping":
                pass
            held.set()
            assert "data: [DONE]" in [line async for line in lines]

    run(scenario())


def test_fields_without_effect_are_named_in_a_header() -> None:
    async def scenario() -> None:
        body = {
            **CHAT, "user": "me", "store": False, "stop": None, "stream_options": None,
            "max_completion_tokens": 5, 'a"b': 1, "client": "else", "id": 1.5,
        }  # fmt: skip
        body["messages"] = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "or not"}]},
        ]
        async with http_harness() as home:
            reply = await home.http.post(CHATS, json=body)
            assert reply.headers["warning"] == '299 edgecosine "ignored: user, store"'
            assert "warning" not in (await home.http.post(CHATS, json=CHAT)).headers
            asked, _ = home.service.requests
            assert (asked.max_tokens, asked.client_id) == (5, "http:127.0.0.1")

    run(scenario())


def test_unsupported_endpoint_is_refused_by_name() -> None:
    async def scenario() -> None:
        async with http_harness() as home:
            reply = await home.http.post("/v1/responses", json={"input": "or not"})
            assert reply.status_code == 404
            assert "use /v1/chat/completions" in reply.json()["error"]["message"]

    run(scenario())


def test_body_that_is_no_request_is_refused() -> None:
    async def scenario() -> None:
        wrong = {"include_usage": "yes"}
        async with http_harness() as home:
            for content, status, code in [
                (b"{", 400, "invalid_json"),
                (b"\xff", 400, "invalid_encoding"),
                (b" " * (MAX_BODY_BYTES + 1), 413, "request_too_large"),
                (json.dumps({**CHAT, "stream_options": wrong}).encode(), 400, "invalid_type"),
            ]:
                reply = await home.http.post(CHATS, content=content)
                assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)

    run(scenario())


def test_request_is_not_told_on_mqtt() -> None:
    async def scenario() -> None:
        async with http_harness() as home:
            await home.http.post(CHATS, json=CHAT)
            home.home.listener.send(
                HOME.request("ask"), "x", response_topic=HOME.response("a", "b")
            )
            await home.home.listener.expect(HOME.response("a", "b"))
            topics = {message.topic for message in home.home.listener.received}
            assert not [topic for topic in topics if "/job/" in topic and "http" in topic]

    run(scenario())


def test_requests_end_with_an_error_when_the_node_ends() -> None:
    async def scenario() -> httpx.Response:
        service = ScriptedService()
        service.hold("or not")
        async with http_harness(service) as home, asyncio.TaskGroup() as group:
            asking = group.create_task(home.http.post(CHATS, json=CHAT))
            await service.begun(1)
            home.home.gateway_task.cancel()
            return await asking

    reply = run(scenario())
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "shutting_down")


@pytest.mark.soak
def test_500_streams_are_open_at_once_and_all_end() -> None:
    async def scenario() -> None:
        service = ScriptedService(max_sessions=512)
        held = service.hold("or not")
        body = {"prompt": "or not"}
        async with http_harness(service) as home:

            async def one() -> str:
                async with StreamClient("127.0.0.1", home.frontend.port) as client:
                    return (await client.complete(body)).text

            async with asyncio.TaskGroup() as group:
                streams = [group.create_task(one()) for _ in range(500)]
                await service.begun(500)
                held.set()
            assert {stream.result() for stream in streams} == {"to be"}
            assert not home.home.gateway.admission.num_running

    run_patiently(scenario())
