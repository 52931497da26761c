"""`ask`, `status` and `broker` as separate processes, against a real Mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator

import pytest

from tests.support.mqtt import (
    COMMANDS_S,
    HOME,
    GatewayHarness,
    free_port,
    gateway_harness,
    needs_mosquitto,
    run,
)

pytestmark = needs_mosquitto


@contextlib.asynccontextmanager
async def command(name: str, *arguments: str) -> AsyncIterator[Process]:
    """A running command, which is killed after the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", f"from edgecosine.cli.{name} import command; command()", *arguments),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def run_to_end(name: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    async with command(name, *arguments) as process:
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()


def at(home: GatewayHarness) -> tuple[str, str]:
    """The option for the harness's broker."""
    return "--broker", home.broker.url


def test_ask_prints_the_text() -> None:
    async def main() -> None:
        async with gateway_harness() as home:
            assert await run_to_end("ask", "or not", *at(home)) == (0, "to be\n", "")
            assert await run_to_end("ask", "--chat", "or not", *at(home)) == (0, "to be\n", "")

    run(main(), COMMANDS_S)


def test_ask_sends_its_options_and_prints_json() -> None:
    async def main() -> None:
        async with gateway_harness() as home:
            options = ("--max-tokens=9", "--temperature=0.5", "--top-p=0.9", "--seed=7", "--json")
            code, out, _ = await run_to_end("ask", "or not", *options, *at(home))
            assert code == 0
            assert json.loads(out)["choices"][0]["text"] == "to be"
            [request] = home.service.requests
            assert (request.max_tokens, request.sampling.temperature) == (9, 0.5)
            assert (request.sampling.top_p, request.sampling.seed) == (0.9, 7)

    run(main(), COMMANDS_S)


def test_ask_refuses_a_too_long_prompt_before_sending_it() -> None:
    async def main() -> None:
        async with gateway_harness() as home:
            for num_bytes in (400_000, 3 << 20):
                async with command("ask", "-", *at(home)) as process:
                    out, err = await process.communicate(b"x" * num_bytes)
                    assert (process.returncode, out) == (1, b"")
                    assert b"the cluster takes at most 262144" in err
                    assert err.count(b"\n") == 1
            assert not [m for m in home.listener.received if "/request/" in m.topic]

    run(main(), COMMANDS_S)


def test_ask_reports_a_missing_gateway_or_broker() -> None:
    async def main() -> None:
        async with gateway_harness() as home:
            code, _, err = await run_to_end("ask", "x", "--cluster", "away", *at(home))
            assert code == 1
            assert "no gateway of cluster 'away'" in err
        code, _, err = await run_to_end("ask", "x", *at(home))
        assert code == 1
        assert "no connection to 127.0.0.1" in err

    run(main(), COMMANDS_S)


@pytest.mark.parametrize(
    "arguments",
    [("",), ("x", "--max-tokens=0"), ("x", "--temperature=-1"), ("x", "--broker=http://x")],
)
def test_ask_refuses_wrong_values(arguments: tuple[str, ...]) -> None:
    code, _, err = run(run_to_end("ask", *arguments))
    assert code != 0
    assert "Error" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_cancels_the_request(number: int, code: int) -> None:
    async def main() -> None:
        async with gateway_harness() as home:
            home.service.hold("hm")
            async with command("ask", "hm", *at(home)) as process:
                assert process.stdout is not None
                assert await process.stdout.read(2) == b"to"
                process.send_signal(number)
                assert await process.wait() == code
            [request] = home.service.requests
            await home.listener.expect_state(request.request_id, "cancelled")

    run(main(), COMMANDS_S)


def test_status_shows_the_nodes() -> None:
    async def main() -> None:
        async with gateway_harness() as home:
            state = {"role": "target", "model": "[red]tiny"}
            home.listener.send(HOME.node_state("t1"), state, retain=True)
            await home.listener.expect(HOME.node_state("t1"))
            code, out, _ = await run_to_end("status", *at(home))
            assert code == 0
            assert "gateway online" in out
            assert "[red]tiny" in out
            code, out, _ = await run_to_end("status", "--json", *at(home))
            data = json.loads(out)
            assert data["online"] is True
            assert data["nodes"]["t1"]["role"] == "target"

    run(main(), COMMANDS_S)


def test_status_watch_shows_changes() -> None:
    async def main() -> None:
        async with (
            gateway_harness() as home,
            command("status", "--watch", "--json", *at(home)) as process,
        ):
            assert process.stdout is not None
            assert json.loads(await process.stdout.readline())["nodes"] == {}
            home.listener.send(HOME.node_state("t1"), {"role": "target"}, retain=True)
            while not json.loads(await process.stdout.readline())["nodes"]:
                pass
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130

    run(main(), COMMANDS_S)


def test_broker_prints_its_kind_and_frees_its_port() -> None:
    async def main() -> None:
        listen = f"127.0.0.1:{free_port()}"
        async with command("broker", "--listen", listen) as process:
            assert process.stdout is not None
            assert await process.stdout.readline() == (
                f"mosquitto is running at mqtt://{listen}\n".encode()
            )
            code, _, err = await run_to_end("broker", "--listen", listen)
            assert code == 1
            assert "is in use by another program: give another address by --listen" in err
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 143
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", int(listen.rpartition(":")[2]))

    run(main(), COMMANDS_S)


def test_ctrl_c_reaches_the_command_and_not_the_broker() -> None:
    async def main() -> None:
        listen = f"127.0.0.1:{free_port()}"
        async with command("broker", "--listen", listen) as process:
            assert process.stdout is not None
            await process.stdout.readline()
            os.killpg(process.pid, signal.SIGINT)
            assert await process.wait() == 130

    run(main(), COMMANDS_S)


def test_broker_ends_with_a_killed_command() -> None:
    async def main() -> None:
        port = free_port()
        async with command("broker", "--listen", f"127.0.0.1:{port}") as process:
            assert process.stdout is not None
            await process.stdout.readline()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            os.kill(process.pid, signal.SIGKILL)
            async with asyncio.timeout(5):
                assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    run(main(), COMMANDS_S)


def test_broker_refuses_a_wrong_address() -> None:
    code, _, err = run(run_to_end("broker", "--listen", "here"))
    assert code != 0
    assert "HOST:PORT" in err
