"""The gateway on a real Mosquitto answers each request once."""

from __future__ import annotations

import json

import pytest

from edgecosine.errors import ActorStopped, RequestError
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.connection import connect
from tests.node.gateway.gateway_talk import ASK, answer, ask, assert_still_answers
from tests.support.fakes import ScriptedService
from tests.support.mqtt import HOME, gateway_harness, listening, needs_mosquitto, run

pytestmark = [needs_mosquitto, pytest.mark.timeout(60)]


def test_completion_gets_states_and_one_final_message() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            ask(home, "1", seed=5)
            final = await answer(home, "1")
            assert final["choices"][0]["text"] == "to be"
            assert final["usage"] == {
                "prompt_tokens": 3,
                "completion_tokens": 2,
                "total_tokens": 5,
            }
            assert final["edgecosine"]["seed"] == 5
            await home.listener.expect_state("1", "done")
            assert home.listener.states("1") == ["accepted", "queued", "running", "done"]

    run(scenario())


def test_request_without_a_seed_gets_a_drawn_one_in_its_answer() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            ask(home, "1")
            ask(home, "2")
            seeds = [(await answer(home, each))["edgecosine"]["seed"] for each in ("1", "2")]
            assert seeds == [request.sampling.seed for request in home.service.requests]
            assert seeds[0] != seeds[1]

    run(scenario())


def test_stream_is_ordered_and_ends_with_fin() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            turns = [{"role": "user", "content": "hm?"}]
            home.listener.send(
                HOME.request("chat"),
                {"id": "2", "client": "cli", "stream": True, "messages": turns},
            )
            pieces = await home.listener.expect(HOME.stream("cli", "2"), 3)
            assert [json.loads(piece.payload) for piece in pieces] == [
                {"i": 0, "delta": "to", "fin": False},
                {"i": 2, "delta": " be", "fin": False},
                {"i": 5, "delta": "", "fin": True},
            ]
            final = await answer(home, "2")
            assert final["choices"][0]["message"] == {
                "role": "assistant",
                "content": "to be",
                "refusal": None,
            }

    run(scenario())


def test_choices_come_in_one_final_message_and_their_parts_are_named() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            ask(home, "1", n=3, seed=5, stream=True, logprobs=2, min_tokens=1, stop_token_ids=[3])
            final = await answer(home, "1")
            assert [choice["index"] for choice in final["choices"]] == [0, 1, 2]
            assert {choice["text"] for choice in final["choices"]} == {"to be"}
            assert final["usage"]["completion_tokens"] == 6
            assert final["edgecosine"]["seed"] == 5
            pieces = await home.listener.expect(HOME.stream("cli", "1"), 7)
            bodies = [json.loads(piece.payload) for piece in pieces]
            assert sorted(body["choice"] for body in bodies[:-1]) == [0, 0, 1, 1, 2, 2]
            assert bodies[-1] == {"i": 15, "delta": "", "fin": True}
            assert {request.sampling.seed for request in home.service.requests} > {5}
            assert {request.key for request in home.service.requests} == {
                "cli/1", "cli/1/1", "cli/1/2",
            }  # fmt: skip
            for request in home.service.requests:
                assert (request.top_logprobs, request.sampling.min_tokens) == (2, 1)
                assert request.sampling.stop_token_ids == (3,)

    run(scenario())


def test_more_choices_than_sessions_are_refused() -> None:
    async def scenario() -> None:
        async with gateway_harness(ScriptedService(max_sessions=2)) as home:
            ask(home, "1", n=3)
            error = (await answer(home, "1"))["error"]
            assert (error["param"], error["code"]) == ("n", "invalid_value")
            await assert_still_answers(home)

    run(scenario())


def test_service_refuses_a_prompt_longer_than_the_context() -> None:
    async def scenario() -> None:
        service = ScriptedService()
        service.errors["long"] = RequestError(
            "too long", code="context_length_exceeded", parameter="prompt"
        )
        async with gateway_harness(service) as home:
            ask(home, "1", prompt="long")
            assert (await answer(home, "1"))["error"]["code"] == "context_length_exceeded"
            await home.listener.expect_state("1", "failed")
            await assert_still_answers(home)

    run(scenario())


def test_exception_in_a_session_is_an_internal_error() -> None:
    async def scenario() -> None:
        service = ScriptedService()
        service.errors["oh"] = ActorStopped("secret reason")
        async with gateway_harness(service) as home:
            ask(home, "1", prompt="oh", stream=True)
            final = await answer(home, "1")
            assert final["error"]["code"] == "internal_error"
            assert "secret" not in json.dumps(final)
            pieces = await home.listener.expect(HOME.stream("cli", "1"), 2)
            assert json.loads(pieces[-1].payload)["fin"] is True
            await assert_still_answers(home)

    run(scenario())


def test_reply_goes_to_the_named_topic() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            named = f"{HOME.root}/response/cli/own/place"
            ask(home, "1", reply_to=named)
            assert (await home.listener.expect_json(named))["id"] == "1"

    run(scenario())


def test_same_request_twice_is_run_once_and_answered_twice() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            gate = home.service.hold("hm")
            ask(home, "1", prompt="hm")
            await home.listener.expect_state("1", "running")
            ask(home, "1", prompt="hm")
            await home.listener.expect(HOME.job_state("1"), 4)
            assert home.listener.states("1")[-1] == "running"
            gate.set()
            await home.listener.expect_state("1", "done")
            ask(home, "1", prompt="hm")
            first, second = await home.listener.expect(HOME.response("cli", "1"), 2)
            assert first.payload == second.payload
            assert len(home.service.requests) == 1

    run(scenario())


def test_id_of_another_request_is_refused() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            ask(home, "1")
            await answer(home, "1")
            ask(home, "1", prompt="something else")
            messages = await home.listener.expect(HOME.response("cli", "1"), 2)
            assert json.loads(messages[1].payload)["error"]["code"] == "duplicate_id"
            ask(home, "1", client="somebody-else")
            assert "choices" in await answer(home, "1", "somebody-else")

    run(scenario())


def test_cancelled_request_ends_and_closes_its_session() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            home.service.hold("hm")
            ask(home, "1", prompt="hm")
            await home.listener.expect_state("1", "running")
            home.listener.send(HOME.job_cancel("1"), b"")
            assert (await answer(home, "1"))["error"]["code"] == "cancelled"
            await home.listener.expect_state("1", "cancelled")
            assert home.service.num_closed == 1
            await assert_still_answers(home)

    run(scenario())


def test_cancel_ends_the_request_of_its_sender_only() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            home.service.hold("hm")
            ask(home, "1", prompt="hm")
            ask(home, "1", prompt="hm", client="other")
            await home.listener.expect(HOME.job_state("1"), 6)
            home.listener.send(HOME.job_cancel("1"), b"", user=(("client", "other"),))
            assert (await answer(home, "1", "other"))["error"]["code"] == "cancelled"
            home.listener.send(HOME.job_cancel("1"), {"client": "cli"})
            assert (await answer(home, "1"))["error"]["code"] == "cancelled"

    run(scenario())


def test_cancel_of_an_unknown_and_of_a_queued_request() -> None:
    async def scenario() -> None:
        async with gateway_harness(ScriptedService(max_sessions=1)) as home:
            home.listener.send(HOME.job_cancel("nothing"), b"\xff")
            home.service.hold("hm")
            ask(home, "1", prompt="hm")
            await home.listener.expect_state("1", "running")
            ask(home, "2")
            await home.listener.expect_state("2", "queued")
            home.listener.send(HOME.job_cancel("2"), b"")
            assert (await answer(home, "2"))["error"]["code"] == "cancelled"
            assert len(home.service.requests) == 1

    run(scenario())


def test_deadline_ends_a_running_and_a_waiting_request() -> None:
    async def scenario() -> None:
        async with gateway_harness(ScriptedService(max_sessions=1)) as home:
            home.service.hold("hm")
            ask(home, "1", prompt="hm", deadline_ms=200)
            ask(home, "2", prompt="hm", deadline_ms=100)
            for request_id in ("1", "2"):
                assert (await answer(home, request_id))["error"]["code"] == "deadline_exceeded"
                await home.listener.expect_state(request_id, "expired")
            assert home.listener.states("2") == ["accepted", "queued", "expired"]
            await assert_still_answers(home)

    run(scenario())


def test_message_expiry_is_a_deadline() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            home.service.hold("hm")
            home.listener.send(
                HOME.request("completion"), {**ASK, "id": "1", "prompt": "hm"}, expiry_s=1
            )
            assert (await answer(home, "1"))["error"]["code"] == "deadline_exceeded"

    run(scenario())


def test_full_queue_refuses_with_retry_after() -> None:
    async def scenario() -> None:
        async with gateway_harness(ScriptedService(max_sessions=1), max_queued=1) as home:
            gate = home.service.hold("hm")
            for request_id in ("1", "2"):
                ask(home, request_id, prompt="hm")
            ask(home, "3")
            error = (await answer(home, "3"))["error"]
            assert error["code"] == "overloaded"
            assert error["retry_after_s"] > 0
            gate.set()
            assert "choices" in await answer(home, "2")
            await assert_still_answers(home)

    run(scenario())


def test_retained_request_is_not_run_again_by_a_new_gateway() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            home.listener.send(HOME.request("completion"), {**ASK, "id": "1"}, retain=True)
            await answer(home, "1")
            async with gateway_harness(broker=home.broker, node_id="t2") as second:
                await assert_still_answers(second)
                assert "1" not in [r.request_id for r in second.service.requests]

    run(scenario())


def test_status_and_info_are_retained_and_leave_with_the_gateway() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home, listening(home.broker, name="late") as late:
            [status] = await late.expect(HOME.status)
            assert (status.payload, status.retain) == (b"online", True)
            info = await late.expect_json(HOME.info)
            assert info["models"] == ["tiny"]
            assert info["limits"]["max_sessions"] == 4
            home.gateway_task.cancel()
            assert (await late.expect(HOME.status, 2))[1].payload == b"offline"

    run(scenario())


def test_late_will_of_a_former_connection_is_corrected() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            home.listener.send(HOME.status, b"offline", retain=True)
            seen = await home.listener.expect(HOME.status, 3)
            assert [message.payload for message in seen] == [b"online", b"offline", b"online"]

    run(scenario())


def test_disconnected_gateway_is_offline_until_it_reconnects() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            home.service.hold("hm")
            ask(home, "1", prompt="hm")
            await home.listener.expect_state("1", "running")
            # The broker throws out the older of two connections with one name.
            address = BrokerAddress.parse(home.broker.url)
            async with connect(address, client_id=home.gateway.client._client_id):
                pass
            seen = await home.listener.expect(HOME.status, 3)
            assert [message.payload for message in seen][:3] == [b"online", b"offline", b"online"]
            home.listener.send(HOME.job_cancel("1"), b"")
            assert (await answer(home, "1"))["error"]["code"] == "cancelled"

    run(scenario())


def test_leaving_gateway_fails_its_requests_and_goes_offline() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            home.service.hold("hm")
            for number in range(8):
                ask(home, str(number), prompt="hm")
            await home.listener.expect_state("7", "queued")
            home.gateway_task.cancel()
            for number in range(8):
                assert (await answer(home, str(number)))["error"]["code"] == "shutting_down"
            assert (await home.listener.expect(HOME.status, 2))[-1].payload == b"offline"

    run(scenario())
