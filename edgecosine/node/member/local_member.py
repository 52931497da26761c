"""The link of a coordinator to the member in its own process; implements the target's
`MemberLink`."""

from __future__ import annotations

import asyncio

from edgecosine.errors import EngineError, RemoteProtocolError
from edgecosine.node.member.member_worker import MemberWorker
from edgecosine.protocol.wire.messages import (
    AnyMessage,
    Judgement,
    JudgeRequest,
    OutOfStep,
    Release,
    Reveal,
)


class LocalMember:
    """Passes requests to a worker; nothing is encoded."""

    def __init__(self, worker: MemberWorker) -> None:
        self._worker = worker

    async def judge(self, request: JudgeRequest | Reveal) -> Judgement | OutOfStep:
        """The worker's answer."""
        answer: asyncio.Future[AnyMessage] = asyncio.get_running_loop().create_future()

        def reply(message: AnyMessage) -> None:
            if not answer.done():
                answer.set_result(message)

        self._worker.on_request(request, reply)
        message = await answer
        assert isinstance(message, Judgement | OutOfStep), "a worker answers nothing else"
        return message

    def send(self, message: AnyMessage) -> None:
        """Release a request."""
        assert isinstance(message, Release), "a coordinator sends nothing else"
        self._worker.on_request(message, _drop)

    def put_out(self, error: RemoteProtocolError) -> None:
        """Raises EngineError: the own engine is no peer that can be kept out."""
        raise EngineError(f"the engine lists impossible rows: {error}")


def _drop(_: AnyMessage) -> None:
    pass
