"""The active requests of a client: sent, sent again to a new gateway, and their answers read.

A request is sent again under its id when a gateway comes back, so it is not run twice. Every wait
is bounded, for a gateway by the client's patience and for an answer by the deadline.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import replace

import msgspec

from edgecosine.client.cluster_view import ClusterView
from edgecosine.errors import RequestError
from edgecosine.protocol.api.answers import FinalMessage, StreamPart, parse_final, parse_piece
from edgecosine.protocol.api.channels import CONTENT
from edgecosine.protocol.api.mqtt_message import JSON_TYPE, MAX_PAYLOAD_BYTES, Outgoing
from edgecosine.protocol.api.openai import check_identifier, render_body
from edgecosine.protocol.api.origins import Origins, cut, joined
from edgecosine.protocol.api.parse_request import too_large
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.request_record import TextPlace
from edgecosine.protocol.api.result import Delta, Usage
from edgecosine.protocol.api.retained_topics import CONTRACT_VERSION, read_facts
from edgecosine.protocol.api.topics import Topics

logger = logging.getLogger(__name__)

_GRACE_S = 10.0
"""Seconds after the deadline in which the gateway's error may still arrive."""
_MAX_SENDINGS = 5
_MAX_PLACES = 1024
"""Most texts that are kept of one answer."""


class ActiveRequest:
    """A request that was sent, the text received so far, and its result.

    Stream parts may repeat or have gaps, as after a broken connection; the final message supplies
    the missing text.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.since = asyncio.get_running_loop().time()
        self.num_sendings = 0
        self._num_taken = 0
        self._texts: dict[TextPlace, str] = {}
        """Received texts."""
        self._origins: dict[TextPlace, Origins] = {}
        """Sources of these texts."""
        self._lengths_taken: defaultdict[TextPlace, int] = defaultdict(int)
        self._usage: Usage | None = None
        self._result: FinalMessage | RequestError | None = None
        self._changed = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether the result has arrived and all text was taken."""
        if self._result is None:
            return False
        return isinstance(self._result, RequestError) or self._place_with_text is None

    @property
    def _place_with_text(self) -> TextPlace | None:
        """A choice and channel with text that was not taken yet."""
        if not self.request.stream:
            return None
        places = self._texts.items()
        return next((at for at, text in places if len(text) > self._lengths_taken[at]), None)

    def take(self) -> Delta | None:
        """New text of one choice and channel since the last call; None if there is none."""
        place = self._place_with_text
        if place is None:
            return None
        text, (choice, channel) = self._texts[place], place
        start, origins = self._lengths_taken[place], self._origins.get(place, ())
        delta = Delta(
            self._num_taken,
            text[start:],
            choice,
            channel,
            origins=cut(origins, start, len(text)) if origins else (),
            usage=self._usage,
        )
        self._lengths_taken[place] = len(text)
        self._num_taken += 1
        return delta

    def take_piece(self, piece: StreamPart) -> None:
        """Add a part at its index. A repeated part changes nothing, a part after a gap is ignored,
        and a part that contradicts earlier text replaces it, since a new gateway sent it."""
        choice = piece.choice or 0
        place = choice, piece.channel
        if piece.is_last or not 0 <= choice < self.request.n or len(self._texts) > _MAX_PLACES:
            return
        text = self._texts.get(place, "")
        if piece.index > len(text) or text.startswith(piece.text, piece.index):
            return
        self._texts[place] = text[: piece.index] + piece.text
        if piece.origins:
            before = cut(self._origins.get(place, ()), 0, piece.index)
            self._origins[place] = joined((*before, *piece.origins))
        self._usage = piece.usage
        self.wake()

    def finish(self, final: FinalMessage) -> None:
        """Set the final message as the result, unless there is one."""
        if self._result is None:
            self._result = final
            for choice, others in enumerate(final.others[: self.request.n]):
                self._texts |= {(choice, channel): text for channel, text in others.items()}
            for choice, text in enumerate(final.texts[: self.request.n]):
                self._texts[choice, CONTENT] = text
            self.wake()

    def fail(self, error: RequestError) -> None:
        """Set an error as the result, unless there is one."""
        if self._result is None:
            self._result = error
            self.wake()

    def result(self) -> FinalMessage:
        """The final message.

        Raises the RequestError that arrived instead.
        """
        if isinstance(self._result, RequestError):
            raise self._result
        if self._result is None:
            raise RuntimeError("the request is still active")
        return self._result

    def wake(self) -> None:
        """Wake the task in `changed`."""
        self._changed.set()

    async def changed(self) -> None:
        """Wait for a change."""
        await self._changed.wait()
        self._changed.clear()


class ActiveRequests:
    """One client's active requests to one cluster; `watch` knows whether a gateway is online."""

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
        """Send a request and yield its text and final message; closing early cancels it.

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
                await self._wait_for_change(active)
            yield active.result()
        finally:
            del self._by_id[request.request_id]
            if not active.is_over:
                self._cancel(request.request_id)

    def take_piece(self, request_id: str, payload: bytes) -> None:
        """Handle a part of an answer."""
        active = self._by_id.get(request_id)
        if active is None:
            return
        try:
            active.take_piece(parse_piece(payload))
        except ValueError as error:
            logger.warning("unreadable stream part: request=%s reason=%s", request_id, error)

    def take_final(self, request_id: str, payload: bytes) -> None:
        """Handle the final message of an answer."""
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
        """Handle a message that the broker refuses; if it is a request, fail it."""
        request_id = read_facts(message.payload).get("id")
        active = self._by_id.get(request_id) if isinstance(request_id, str) else None
        if active is not None:
            active.fail(
                RequestError(
                    f"the broker refuses the request: {reason}",
                    code="broker_refused",
                    status=502,
                )
            )

    def on_gateway(self) -> None:
        """Handle a change of whether a gateway is online."""
        for active in self._by_id.values():
            # The gateway may be a new one; a known one ignores the repetition.
            if self._watch.is_online:
                self._send(active)
            active.wake()

    def _check_contract(self) -> None:
        """Raises RequestError when the gateway uses a newer MQTT contract."""
        theirs = self._watch.info().get("contract")
        if isinstance(theirs, int) and theirs > CONTRACT_VERSION:
            raise RequestError(
                f"the gateway uses version {theirs} of the MQTT contract, this client "
                f"{CONTRACT_VERSION}: install the gateway's release here",
                code="contract_mismatch",
                status=505,
            )

    def _open(self, request: Request) -> ActiveRequest:
        check_identifier("id", request.request_id)
        if request.request_id in self._by_id:
            raise RequestError(
                "a request with this id is active already",
                code="duplicate_id",
                parameter="id",
                status=409,
            )
        num_bytes, limit = len(render_body(request)), self._max_request_bytes
        if num_bytes > limit:
            raise too_large(num_bytes, limit).error()
        active = ActiveRequest(request)
        self._by_id[request.request_id] = active
        return active

    @property
    def _max_request_bytes(self) -> int:
        """The gateway's limit, at most that of MQTT."""
        limits = self._watch.info().get("limits")
        announced_limit = limits.get("max_request_bytes") if isinstance(limits, dict) else None
        return (
            min(announced_limit, MAX_PAYLOAD_BYTES)
            if isinstance(announced_limit, int)
            else MAX_PAYLOAD_BYTES
        )

    async def _wait_for_change(self, active: ActiveRequest) -> None:
        """Wait for a change of a request, or fail it when its time is over."""
        until = self._until(active)
        try:
            async with asyncio.timeout_at(None if math.isinf(until) else until):
                await active.changed()
        except TimeoutError:
            if asyncio.get_running_loop().time() < active.since + active.request.deadline_s:
                active.fail(no_gateway(self._topics.cluster))
            else:
                active.fail(too_late())

    def _until(self, active: ActiveRequest) -> float:
        # The gateway enforces the deadline; its error arrives a little later.
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
    """The error for a request whose deadline passed without an answer."""
    return RequestError("no answer in time", code="deadline_exceeded", status=408)


def no_gateway(cluster: str, starting: Iterable[str] = ()) -> RequestError:
    """The error for a cluster without an online gateway; `starting` describes starting targets."""
    return RequestError(
        "; ".join([f"no gateway of cluster {cluster!r} is online on this broker", *starting]),
        code="gateway_offline",
        status=503,
    )
