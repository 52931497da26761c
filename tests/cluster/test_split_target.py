"""A target over two processes: its text is that of one process, and a lost rank ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.engine.loading.load import load_target
from edgecosine.engine.options import LoadOptions
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.errors import BrokerLost, RequestError
from edgecosine.lab.load_generator import ask
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.protocol.api.request import DEFAULT_POLICY
from tests.engine.decoding import decode, nothing
from tests.support.forked_nodes import ForkedProcess
from tests.support.killable import KillableNode
from tests.support.mqtt import free_port, run_patiently

NUM_TOKENS = 24


@contextlib.asynccontextmanager
async def _split_target(broker: EmbeddedBroker, log: Path) -> AsyncIterator[ForkedProcess]:
    node = KillableNode(
        "--role", "target", "--model", zoo.TARGET, "--tensor-parallel", "2", "--threads", "1",
        "--no-mdns", "--listen", "127.0.0.1:0", "--broker", broker.url, log=log,
    )  # fmt: skip
    await node.start()
    try:
        yield node.process
    finally:
        await node.kill()


async def _ask(client: Client, prompt: str) -> str:
    asked = await ask(client, prompt, domain="", policy=DEFAULT_POLICY, max_tokens=NUM_TOKENS)
    return asked.text


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _text(prompt: str) -> str:
    """The text of a target in one process."""
    engine, loaded = load_target(LoadOptions(zoo.TARGET, device="cpu", threads=1, slots=1))
    assert isinstance(engine, TransformerTarget)
    assert loaded.codec is not None
    [answer], _ = decode(engine, [loaded.codec.encode(prompt)], NUM_TOKENS, [nothing])
    return loaded.codec.decode(answer)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_split_target_has_the_text_of_one_process_and_reports_a_lost_rank(tmp_path: Path) -> None:
    prompt, log = next(iter(zoo.prompts().values()))[0], tmp_path / "log"

    async def scenario() -> None:
        async with EmbeddedBroker(port=free_port()) as broker, _split_target(broker, log) as node:
            async with Client(broker.url, "home", patience_s=1) as client:
                while not await client.is_online():
                    assert node.returncode is None, log.read_text()
                    await client.changed()
                assert await _ask(client, prompt) == _text(prompt)
                [rank] = _children(node.pid)
                os.kill(rank, signal.SIGKILL)
                with contextlib.suppress(RequestError, BrokerLost):
                    await _ask(client, prompt)
            assert await node.wait() == 1
        assert f"rank 1 (process {rank}) ended by SIGKILL" in log.read_text()

    run_patiently(scenario())
