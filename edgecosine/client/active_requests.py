"""The requests that a client has at work: sent, sent again to whoever takes over, and read.

A request goes out again when a gateway comes back, under its id, so it is not run twice. Nothing is
waited for without end: neither a gateway that went away nor an answer beyond its deadline.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

import msgspec

from edgecosine.client.cluster_view import ClusterView
from edgecosine.errors import RequestError
from edgecosine.protocol.api.answers import FinalMessage, StreamPart, parse_final, parse_piece
from edgecosine.protocol.api.mqtt_message import JSON_TYPE, MAX_PAYLOAD_BYTES, Outgoing
from edgecosine.protocol.api.openai import check_identifier, render_body
from edgecosine.protocol.api.parse_request import too_large
from edgecosine.protocol.api.request import Delta, Request
from edgecosine.protocol.api.retained_topics import CONTRACT_VERSION, read_facts
from edgecosine.protocol.api.topics import Topics

logger = logging.getLogger(__name__)

_GRACE_S = 10.0
"""How much later than the deadline the gateway's word on it may come."""
_MAX_SENDINGS = 5


class ActiveRequest:
    """A request that was sent."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.since = asyncio.get_running_loop().time()
        self.num_sendings = 0
        self._num_taken = 0
        self._texts = [""] * request.n
        """Of each choice."""
        self._lengths_taken = [0] * request.n
        self._result: FinalMessage | RequestError | None = None
        self._news = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether the end has come and all text was taken."""
        if self._result is None:
            return False
        return isinstance(self._result, RequestError) or self._choice_with_text is None

    @property
    def _choice_with_text(self) -> int | None:
        """A choice with text that was not taken."""
        if not self.request.stream:
            return None
        lengths = enumerate(zip(self._texts, self._lengths_taken, strict=True))
        return next((choice for choice, (text, taken) in lengths if len(text) > taken), None)

    def take(self) -> Delta | None:
        """Text of one choice that came since the last call, if any came."""
        choice = self._choice_with_text
        if choice is None:
            return None
        text = self._texts[choice]
        delta = Delta(self._num_taken, text[self._lengths_taken[choice] :], choice)
        self._lengths_taken[choice] = len(text)
        self._num_taken += 1
        return delta

    def take_piece(self, piece: StreamPart) -> None:
        """Add a part; its index says where. What comes again changes nothing, gaps are left open,
        and a part that contradicts what came is believed, since it is a new gateway's."""
        choice = piece.choice or 0
        if piece.is_last or not 0 <= choice < len(self._texts):
            return
        text = self._texts[choice]
        if piece.index > len(text) or text.startswith(piece.text, piece.index):
            return
        self._texts[choice] = text[: piece.index] + piece.text
        self.wake()

    def finish(self, final: FinalMessage) -> None:
        """The final message came."""
        if self._result is None:
            self._result = final
            self._texts[: len(final.texts)] = final.texts[: self.request.n]
            self.wake()

    def fail(self, error: RequestError) -> None:
        """There will be no answer."""
        if self._result is None:
            self._result = error
            self.wake()

    def result(self) -> FinalMessage:
        """The final message.

        Raises the RequestError that came instead.
        """
        if isinstance(self._result, RequestError):
            raise self._result
        if self._result is None:
            raise RuntimeError("the request is still at work")
        return self._result

    def wake(self) -> None:
        """Something has happened."""
        self._news.set()

    async def news(self) -> None:
        """Wait until something happens."""
        await self._news.wait()
        self._news.clear()


class ActiveRequests:
    """What one client has asked of one cluster; `watch` says whether a gateway is there."""

    def __init__(
        self,
        *,
        topics: Topics,
        client_id: str,
        watch: ClusterView,
        send: Callable[[Outgoing], None],
        patience_s: float,
    ) -> None:
        self._topics, self._client_id, self._watch = topics, client_id, watch
        self._publish, self._patience_s = send, patience_s
        self._by_id: dict[str, ActiveRequest] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    async def ask(self, request: Request) -> AsyncGenerator[Delta | FinalMessage, None]:
        """Send a request once and yield what comes; leaving early cancels it.

        Raises RequestError.
        """
        request = replace(request, client_id=self._client_id)
        self._check_contract()
        active = self._open(request)
        try:
            self._send(active)
            while not active.is_over:
                if (delta := active.take()) is not None:
                    yield delta
                    continue
                await self._news(active)
            yield active.result()
        finally:
            del self._by_id[request.request_id]
            if not active.is_over:
                self._cancel(request.request_id)

    def take_piece(self, request_id: str, payload: bytes) -> None:
        """A part of an answer has come."""
        active = self._by_id.get(request_id)
        if active is None:
            return
        try:
            active.take_piece(parse_piece(payload))
        except ValueError as error:
            logger.warning("unreadable piece: request=%s reason=%s", request_id, error)

    def take_final(self, request_id: str, payload: bytes) -> None:
        """The final message of an answer has come."""
        active = self._by_id.get(request_id)
        if active is None:
            return
        try:
            active.finish(parse_final(payload))
        except RequestError as error:
            active.fail(error)
        except ValueError as error:
            logger.warning("unreadable final message: request=%s reason=%s", request_id, error)

    def undeliverable(self, message: Outgoing, reason: str) -> None:
        """The broker does not take a message of ours, perhaps a request."""
        request_id = read_facts(message.payload).get("id")
        active = self._by_id.get(request_id) if isinstance(request_id, str) else None
        if active is not None:
            active.fail(
                RequestError(
                    f"the broker does not take the request: {reason}",
                    code="broker_refused",
                    status=502,
                )
            )

    def on_gateway(self) -> None:
        """A gateway has come or gone."""
        for active in self._by_id.values():
            # It may be another gateway, or the same one that has forgotten nothing.
            if self._watch.is_online:
                self._send(active)
            active.wake()

    def _check_contract(self) -> None:
        """Whether we can read what the gateway will say."""
        theirs = self._watch.info().get("contract")
        if isinstance(theirs, int) and theirs > CONTRACT_VERSION:
            raise RequestError(
                f"the gateway speaks version {theirs} of the MQTT contract, this client "
                f"{CONTRACT_VERSION}: install the gateway's release here",
                code="contract_mismatch",
                status=505,
            )

    def _open(self, request: Request) -> ActiveRequest:
        check_identifier("id", request.request_id)
        if request.request_id in self._by_id:
            raise RequestError(
                "this id is at work already", code="duplicate_id", parameter="id", status=409
            )
        num_bytes, limit = len(render_body(request)), self._max_request_bytes
        if num_bytes > limit:
            raise too_large(num_bytes, limit).error()
        active = ActiveRequest(request)
        self._by_id[request.request_id] = active
        return active

    @property
    def _max_request_bytes(self) -> int:
        """As the gateway tells it; at most what MQTT carries."""
        limits = self._watch.info().get("limits")
        announced_limit = limits.get("max_request_bytes") if isinstance(limits, dict) else None
        return (
            min(announced_limit, MAX_PAYLOAD_BYTES)
            if isinstance(announced_limit, int)
            else MAX_PAYLOAD_BYTES
        )

    async def _news(self, active: ActiveRequest) -> None:
        """Wait for something to happen to a request; the end of patience is something, too."""
        until = self._until(active)
        try:
            async with asyncio.timeout_at(None if math.isinf(until) else until):
                await active.news()
        except TimeoutError:
            if asyncio.get_running_loop().time() < active.since + active.request.deadline_s:
                active.fail(no_gateway(self._topics.cluster))
            else:
                active.fail(too_late())

    def _until(self, active: ActiveRequest) -> float:
        # The gateway keeps the deadline; its word on that comes a little later.
        late = active.since + active.request.deadline_s + _GRACE_S
        if self._watch.is_online:
            return late
        return min(late, self._watch.offline_since + self._patience_s)

    def _send(self, active: ActiveRequest) -> None:
        if active.num_sendings >= _MAX_SENDINGS:
            active.fail(no_gateway(self._topics.cluster))
            return
        active.num_sendings += 1
        kind = active.request.kind
        self._publish(
            Outgoing(
                self._topics.request("chat" if kind == "chat" else "completion"),
                render_body(active.request),
                content_type=JSON_TYPE,
            )
        )

    def _cancel(self, request_id: str) -> None:
        self._publish(
            Outgoing(
                self._topics.job_cancel(request_id),
                msgspec.json.encode({"client": self._client_id}),
                content_type=JSON_TYPE,
            )
        )


def too_late() -> RequestError:
    """The deadline has passed, and nobody said so."""
    return RequestError("no answer in time", code="deadline_exceeded", status=408)


def no_gateway(cluster: str) -> RequestError:
    """Why nobody can be asked."""
    return RequestError(
        f"no gateway of cluster {cluster!r} is online on this broker",
        code="gateway_offline",
        status=503,
    )
