"""How commands end: exit codes, one line for each error, closed pipes and full disks."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgecosine.cli import main
from edgecosine.cli.exit_status import end_of
from edgecosine.errors import BrokerLost, ConfigError
from edgecosine.local.embedded_broker import EmbeddedBroker
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.node_status import NodeStatusPublisher
from edgecosine.protocol.api.retained_topics import node_state_notice
from tests.support.mqtt import (
    COMMANDS_S,
    HOME,
    GatewayHarness,
    free_port,
    gateway_harness,
    needs_mosquitto,
    run,
    running,
)

EDGECOSINE = (sys.executable, "-m", "edgecosine")
OURS = shlex.join(EDGECOSINE)
DRAFTER = ("node", "--role", "drafter", "--model", "ngram")
LONG_LABEL = "a" * 70


async def shell(
    script: str, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a script; `$EC` is the command line."""
    process = await asyncio.create_subprocess_exec(
        "bash", "-o", "pipefail", "-c", script,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "EC": OURS, **(env or {})}, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            # The loop would wait for it for ever.
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode is not None
    error = err.decode(errors="replace")
    assert "Traceback" not in error, error
    assert "Exception ignored" not in error, error
    return process.returncode, out.decode(errors="replace"), error


def ends(*words: str | bytes, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit code and last line of a command in a separate process."""
    done = subprocess.run(
        [*EDGECOSINE, *words], capture_output=True, check=False,
        env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    error = done.stderr.decode(errors="replace")
    assert "Traceback" not in error, error
    return done.returncode, (error.strip().splitlines() or [""])[-1]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("nosuch",), "No such command"),
        (("ask",), "Missing argument"),
        (("ask", ""), "the prompt is empty"),
        (("ask", "x", "--broker", "http://x"), "broker = 'http://x'"),
        (("ask", "x", "--broker", "mqtt://[::1"), "broker = 'mqtt://[::1'"),
        (("ask", "x", "--broker", "mqtt://h:99999"), "broker = 'mqtt://h:99999'"),
        (("ask", "x", "--broker", "mqtt://h:0"), "a port from 1 to 65535"),
        (("ask", "x", "--broker", f"mqtt://{LONG_LABEL}.lan"), "1 to 63 letters"),
        (("ask", "x", "--broker", "mqtt://me:pa:ss/word@h"), "mqtt://me@h"),
        (("ask", "x", "--cluster", "a/b"), "cluster = 'a/b'"),
        (("status", "--cluster", "a/b"), "cluster = 'a/b'"),
        (("status", "--broker", "h:1883"), "broker = 'h:1883'"),
        (("doctor", "--broker", "mqtt://[::1"), "broker = "),
        (("up", "--broker", "mqtt://[::1"), "broker = "),
        (("broker", "--listen", "here"), "HOST:PORT"),
        (("broker", "--listen", f"{LONG_LABEL}:1", "--insecure"), "listen = "),
        (("cluster", "--cluster", "a/b", "list"), "cluster = 'a/b'"),
        (("cluster", "--credentials", "/nonexistent", "list"), "edgecosine cluster init"),
        ((*DRAFTER, "--cores", "99"), "cores = "),
        ((*DRAFTER, "--listen", ":7411"), "listen = "),
        ((*DRAFTER, "--listen", f"{LONG_LABEL}:1", "--insecure"), "listen = "),
        ((*DRAFTER, "--peer", "x"), "peer = 'x'"),
        ((*DRAFTER, "--peer", f"{LONG_LABEL}:1", "--insecure"), "1 to 63 letters"),
        ((*DRAFTER, "--broker", "http://x"), "broker = 'http://x'"),
        ((*DRAFTER, "--cluster", "a/b"), "cluster = 'a/b'"),
        ((*DRAFTER, "--node-id", "a b"), "node_id = 'a b'"),
        ((*DRAFTER, "--credentials", "/nonexistent"), "credentials = "),
        (("ask", b"x \xff"), "not UTF-8"),
        (("ask", "x", "--cluster", b"\xff"), "not UTF-8"),
    ],
)
def test_wrong_arguments_exit_with_2_and_name_the_allowed_values(
    words: tuple[str | bytes, ...], error: str
) -> None:
    done = CliRunner().invoke(main, [os.fsdecode(word) for word in words])
    line = done.stderr.strip().splitlines()[-1]
    assert (done.exit_code, error in line) == (2, True), line
    assert "ss/word" not in line


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((*DRAFTER, "--node-id", "a b"), "node_id = 'a b'"),
        (("ask", b"x \xff"), "not UTF-8"),
    ],
)
def test_process_ends_with_2_and_a_line(words: tuple[str | bytes, ...], error: str) -> None:
    code, line = ends(*words)
    assert (code, error in line) == (2, True), line


def test_wrong_environment_variables_exit_with_2() -> None:
    code, line = ends("ask", "x", env={"EDGECOSINE_BROKER": "mqtt://me:secret@[::1"})
    assert (code, "mqtt://me:…@[::1" in line, "secret" in line) == (2, True, False)
    code, line = ends("ask", "x", env={"EDGECOSINE_CLUSTER": os.fsdecode(b"\xff")})
    assert (code, "not UTF-8" in line) == (2, True)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("ask", "x", "--broker", "mqtt://127.0.0.1:{port}"), "no connection to 127.0.0.1"),
        (("ask", "x", "--broker", "mqtt://[fe80::1%25lo]:{port}"), "no connection to fe80::1%lo:"),
        (("status", "--broker", "mqtt://127.0.0.1:{port}"), "no connection to 127.0.0.1"),
        (("up", "--broker", "mqtt://127.0.0.1:{port}", "--target", "nosuch"), "no connection"),
    ],
)
def test_failures_while_running_exit_with_1(words: tuple[str, ...], error: str) -> None:
    port = free_port()
    code, line = ends(*(word.format(port=port) for word in words))
    assert (code, error in line) == (1, True), line


def test_port_in_use_exits_with_1() -> None:
    async def scenario() -> None:
        server = await asyncio.start_server(lambda _, __: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            for command in (
                f"$EC broker --listen 127.0.0.1:{port}",
                f"$EC {shlex.join(DRAFTER)} --broker none --no-mdns --listen 127.0.0.1:{port}",
                f"$EC up --target nosuch --broker-port {port}",
            ):
                code, _, error = await shell(command)
                assert (code, f"127.0.0.1:{port}" in error) == (1, True), error

    run(scenario(), COMMANDS_S)


@needs_mosquitto
def test_output_that_cannot_be_written_sets_the_exit_code() -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            at = f"--broker {home.broker.url}"
            home.service.hold("hm")
            # The reader of the output ends first.
            for script in (
                f"$EC ask 'or not' {at} | true",
                f"$EC status --json {at} | true",
                f"$EC status {at} | true",
            ):
                assert await shell(script) == (141, "", "")
            for script in (f"$EC ask 'or not' {at}", f"$EC status {at}", "$EC --help"):
                code, _, error = await shell(f"{script} >/dev/full")
                assert (code, error) == (1, "Error: cannot write: No space left on device\n")
                code, _, error = await shell(f"{script} >&-")
                assert (code, error) == (1, "Error: cannot write: Bad file descriptor\n")
            code, out, error = await shell(f"$EC ask 'or not' {at} <&- 2>&-")
            assert (code, out, error) == (0, "to be\n", "")
            assert (await shell(f"$EC ask - {at} <&-"))[0] == 2

    run(scenario(), COMMANDS_S)


@needs_mosquitto
def test_watching_ends_when_its_reader_has_gone() -> None:
    async def scenario(home: GatewayHarness) -> None:
        at = f"--broker {home.broker.url}"
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(
                shell(f"$EC status --watch --json {at} | head -n 1 | wc -l")
            )
            number = 0
            while not watching.done():
                home.listener.mqtt_client.send(
                    node_state_notice(HOME, "t1", {"role": "target", "queued": number})
                )
                number += 1
                await asyncio.sleep(0.1)
        assert watching.result() == (141, "1\n", "")

    async def inside() -> None:
        async with gateway_harness() as home:
            await home.listener.expect(HOME.status)
            await scenario(home)

    run(inside(), COMMANDS_S)


@needs_mosquitto
@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_texts_are_read_and_printed_in_all_encodings(encoding: str) -> None:
    async def scenario() -> None:
        async with gateway_harness() as home:
            home.listener.mqtt_client.send(
                node_state_notice(HOME, "t1", {"role": "target", "model": "é😀"})
            )
            await home.listener.expect(HOME.node_state("t1"))
            env = {"PYTHONIOENCODING": encoding}
            at = f"--broker {home.broker.url}"
            code, out, _ = await shell(f"$EC status {at}", env=env)
            assert (code, "gateway online" in out) == (0, True)
            code, _, _ = await shell(f"$EC ask 'or not é' {at}", env=env)
            assert code == 0
            assert home.service.requests[-1].prompt == "or not é"
            text = "or é".encode("latin-1" if encoding == "latin-1" else "utf-8")
            code, _, _ = await shell(f"$EC ask - {at}", text, env)
            assert code == 0
            assert home.service.requests[-1].prompt == "or é"

    run(scenario(), COMMANDS_S)


def test_standard_input_that_is_not_text_is_refused() -> None:
    async def scenario() -> None:
        code, _, error = await shell("$EC ask -", b"or not \xff", {"PYTHONIOENCODING": "utf-8"})
        assert (code, "standard input is not UTF-8 (byte 7)" in error) == (2, True)

    run(scenario(), COMMANDS_S)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_have_their_exit_codes(number: int, code: int) -> None:
    async def scenario() -> None:
        process = await asyncio.create_subprocess_exec(
            *EDGECOSINE, *DRAFTER, "--broker", "none", "--no-mdns",
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert process.stderr is not None
        while b"listening" not in (line := await process.stderr.readline()):
            assert line
        process.send_signal(number)
        rest = await process.stderr.read()
        assert (await process.wait(), b"Traceback" in rest) == (code, False)

    run(scenario(), COMMANDS_S)


def test_every_cause_is_one_line_and_a_bug_names_its_origin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lines_of(error: BaseException) -> tuple[str, int]:
        end = end_of(error)
        return str(getattr(end, "message", "")), end.exit_code

    lost, wrong = BrokerLost("it\nended"), ConfigError("slots", 0, "more")
    assert lines_of(lost) == ("it ended", 1)
    assert lines_of(wrong) == ("slots = 0 is not allowed; expected: more", 2)
    assert lines_of(ExceptionGroup("", [wrong, ExceptionGroup("", [wrong])]))[1] == 2
    both = ("slots = 0 is not allowed; expected: more\nit ended", 1)
    assert lines_of(BaseExceptionGroup("", [wrong, ExceptionGroup("", [lost])])) == both
    assert lines_of(asyncio.CancelledError())[1] == 1
    full = OSError(28, "No space left on device", "/x")
    assert lines_of(full) == ("/x: No space left on device", 1)
    try:
        end_of(3)  # type: ignore[arg-type]
    except AttributeError as bug:
        text, code = lines_of(bug)
        assert (text.startswith("AttributeError: "), "cli/exit_status.py:" in text, code) == (
            True, True, 1,
        )  # fmt: skip
        assert capsys.readouterr().err == ""
        monkeypatch.setenv("EDGECOSINE_LOG_LEVEL", "debug")
        end_of(bug)
        assert "Traceback" in capsys.readouterr().err


def test_commands_can_share_a_process(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert (result.exit_code, "edgecosine" in result.output) == (0, True)
    result = CliRunner().invoke(main, ["cluster", "--credentials", str(tmp_path), "list"])
    assert (result.exit_code, "Error: credentials = " in result.output) == (2, True)


@needs_mosquitto
def test_second_drafter_of_the_same_name_reports_why_it_cannot_start() -> None:
    async def scenario() -> None:
        async with EmbeddedBroker(port=free_port()) as broker:
            address = BrokerAddress.parse(broker.url)
            node = NodeStatusPublisher(broker=address, cluster="home", node_id="d1")
            async with running(node.run()):
                await node.connected()
                node.publish_presence("ready")
                options = f"--node-id d1 --no-mdns --broker {broker.url} --log-level error"
                code, _, error = await shell(f"$EC {shlex.join(DRAFTER)} {options}")
                assert code == 2
                assert error.startswith("Error: node_id = 'd1' is not allowed; expected: ")
                assert error.count("\n") == 1

    run(scenario(), COMMANDS_S)
