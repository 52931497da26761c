"""Messages that tests send to a gateway, and the replies that they expect."""

from __future__ import annotations

from typing import Any

from tests.support.mqtt import HOME, GatewayHarness

ASK: dict[str, Any] = {"client": "cli", "prompt": "or not"}


def ask(home: GatewayHarness, request_id: str, **fields: Any) -> None:
    """Send a completion request; fields of None are left out."""
    body = {**ASK, "id": request_id, **fields}
    home.listener.send(HOME.request("completion"), {k: v for k, v in body.items() if v is not None})


async def answer(home: GatewayHarness, request_id: str, client: str = "cli") -> Any:
    """The final message of a request."""
    return await home.listener.expect_json(HOME.response(client, request_id))


async def assert_still_answers(home: GatewayHarness) -> None:
    """The gateway took no harm."""
    ask(home, "after")
    assert (await answer(home, "after"))["choices"][0]["text"] == "to be"
