"""A protected cluster set up by the documented commands; its logs contain no secrets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edgecosine.client.client import Client
from edgecosine.local import child_processes
from edgecosine.mqtt.broker_address import BrokerAddress
from tests.support.forked_nodes import spawn
from tests.support.mqtt import free_port, needs_mosquitto, run_patiently

pytestmark = [needs_mosquitto, pytest.mark.timeout(120)]

PROMPT = "def a_very_private_name():"


class Machine:
    """A machine whose user configuration lies in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.environment = {"XDG_CONFIG_HOME": str(folder), "EDGECOSINE_LOG_LEVEL": "debug"}

    @property
    def credentials(self) -> Path:
        return self.folder / "edgecosine" / "fort"

    async def command(self, *words: str, **environment: str) -> str:
        """Run a command to its end; returns its output."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edgecosine", *words, stdin=DEVNULL, stdout=PIPE, stderr=PIPE,
            env={**os.environ, **self.environment, **environment},
        )  # fmt: skip
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode()

    @contextlib.asynccontextmanager
    async def runs(self, *words: str) -> AsyncIterator[Path]:
        """Run a node inside the block; yields its log file."""
        log = self.folder / f"{words[1]}.log"
        command = [sys.executable, "-m", "edgecosine", *words]
        process = await spawn(command, log, env=self.environment)
        try:
            yield log
        finally:
            await child_processes.stop(process)


@contextlib.asynccontextmanager
async def mosquitto(folder: Path) -> AsyncIterator[None]:
    conf = folder / "mosquitto.conf"
    conf.write_text(conf.read_text() + "user root\n")  # else it drops the right to read the file
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin") or "mosquitto"
    process = await asyncio.create_subprocess_exec(
        program, "-c", str(conf), stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def linked(client: Client, *drafters: str) -> None:
    """Wait until the target is linked with exactly these."""
    while True:
        view = (await client.nodes()).get("big")
        if (
            view is not None
            and view.is_here
            and set(view.state.get("drafters", ())) == set(drafters)
        ):
            return
        await client.changed()


def test_cluster_is_set_up_used_and_a_node_revoked_without_secrets_in_logs(tmp_path: Path) -> None:
    async def scenario() -> None:
        big, small, other = (Machine(tmp_path / name) for name in ("big", "small", "other"))
        enrolment, port, node_port = free_port(), free_port(), free_port()
        cluster = ("cluster", "--cluster", "fort")
        await big.command(
            *cluster, "init", "--node-id", "big", "--listen", f"127.0.0.1:{enrolment}"
        )
        printed = await big.command(
            *cluster, "broker-config", str(tmp_path / "broker"), "--host", "127.0.0.1",
            "--client", "alice", "--port", str(port), "--node-port", str(node_port),
        )  # fmt: skip
        password = printed.split()[1]
        broker = ("--cluster", "fort", "--broker", f"mqtts://127.0.0.1:{node_port}")
        client_options = ("--cluster", "fort", "--broker", f"mqtts://127.0.0.1:{port}",
                  "--broker-username", "alice")  # fmt: skip
        tokens = []
        access = BrokerAddress.parse(
            f"mqtts://127.0.0.1:{port}", username="alice", password=password,
            ca_file=big.credentials / "authorities.pem",
        )  # fmt: skip
        ask = ("ask", PROMPT, "--max-tokens", "24", *client_options)
        links = free_port()
        target = (
            "node", "--role=target", "--model=target", "--no-mdns", *broker,
            "--listen", f"127.0.0.1:{links}",
        )  # fmt: skip
        drafter = (
            "node", "--role=drafter", "--model=ngram", "--no-mdns", *broker,
            "--peer", f"127.0.0.1:{links}",
        )  # fmt: skip
        async with (
            mosquitto(tmp_path / "broker"),
            big.runs(*target) as target_log,
            Client(access, "fort") as client,
        ):
            await linked(client)
            for machine, name in ((small, "small"), (other, "other")):
                tokens.append((await big.command(*cluster, "invite")).strip())
                await machine.command("cluster", "join", tokens[-1], "--node-id", name)
            async with small.runs(*drafter) as small_log, other.runs(*drafter) as other_log:
                await linked(client, "small", "other")
                answer = await big.command(*ask, EDGECOSINE_BROKER_PASSWORD=password)
                assert len(answer) > 24
                await big.command(*cluster, "revoke", "other")
                await linked(client, "small")
                again = await big.command(*ask, EDGECOSINE_BROKER_PASSWORD=password)
                assert again == answer
            logs = [log.read_text() for log in (target_log, small_log, other_log)]
        assert "the certificate of other was revoked" in logs[0]
        assert "the certificate of other was revoked" in logs[2]
        assert "round" in logs[0] or "request finished" in logs[0]
        secrets = [password, PROMPT, answer.strip()[:20], *tokens, *(t[10:] for t in tokens)]
        secrets += [
            line
            for machine in (big, small, other)
            for line in (machine.credentials / "node.pem").read_text().splitlines()[1:4]
        ]
        for text in logs:
            assert "DEBUG" in text
            assert [secret for secret in secrets if secret in text] == []

    run_patiently(scenario())
