"""The gateway on a real Mosquitto: what is asked is answered once, whatever comes in."""

from __future__ import annotations

import json

import pytest

from tests.mqtt_fixtures import HOME, house, needs_mosquitto, run

pytestmark = [needs_mosquitto, pytest.mark.timeout(60)]


def test_completion_gets_states_and_one_final_message() -> None:
    async def story() -> None:
        async with house() as home:
            home.listener.send(
                HOME.request("completion"),
                {"id": "1", "client": "cli", "prompt": "or not", "seed": 5},
            )
            final = await home.listener.expect_json(HOME.response("cli", "1"))
            assert final["choices"][0]["text"] == "to be"
            assert final["edgecosine"]["seed"] == 5
            await home.listener.expect_state("1", "done")
            assert home.listener.states("1") == ["accepted", "queued", "running", "done"]

    run(story())


def test_stream_is_ordered_and_ends_with_fin() -> None:
    async def story() -> None:
        async with house() as home:
            home.listener.send(
                HOME.request("chat"),
                {
                    "id": "2",
                    "client": "cli",
                    "stream": True,
                    "messages": [{"role": "user", "content": "hm?"}],
                },
            )
            pieces = await home.listener.expect(HOME.stream("cli", "2"), 3)
            assert [json.loads(piece.payload) for piece in pieces] == [
                {"i": 0, "delta": "to", "fin": False},
                {"i": 1, "delta": " be", "fin": False},
                {"i": 2, "delta": "", "fin": True},
            ]
            final = await home.listener.expect_json(HOME.response("cli", "2"))
            assert final["choices"][0]["message"] == {"role": "assistant", "content": "to be"}

    run(story())
