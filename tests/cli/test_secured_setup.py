"""The secured set-up of README with a real Mosquitto: as root, as a user, and repeated."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecosine.client.client import Client
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.security.mosquitto import broker_account
from tests.support.mqtt import free_port, needs_mosquitto, run

pytestmark = pytest.mark.timeout(60)

USER_ID = 54321
AS_USER = """
import os, sys
import edgecosine.cli.cluster
from edgecosine.cli import main
user = int(sys.argv.pop(1))
os.chdir("/"); os.setgroups([]); os.setgid(user); os.setuid(user)
main(prog_name="edgecosine")
"""
"""The user may not be able to read the interpreter's files, so imports come first."""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that every user can read, unlike that of pytest."""
    with tempfile.TemporaryDirectory(prefix="edgecosine-test-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


class Operator:
    """A user of the command line with a home directory."""

    def __init__(self, shared: Path, user: int | None = None) -> None:
        self.user = user
        self.folder = shared / "operator"
        self.folder.mkdir(exist_ok=True)
        if user is not None:
            os.chown(self.folder, user, user)
        self.broker = self.folder / "broker" if user is not None else shared / "broker"
        self.port, self.node_port = free_port(), free_port()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `edgecosine cluster`."""
        program = ("-m", "edgecosine") if self.user is None else ("-c", AS_USER, str(self.user))
        return subprocess.run(
            [sys.executable, *program, "cluster", *words], text=True, check=False,
            capture_output=True, timeout=30,
            env={**os.environ, "HOME": str(self.folder), "XDG_CONFIG_HOME": ""},
        )  # fmt: skip

    def configure(self, *words: str) -> str:
        """Run `broker-config`; returns its standard output."""
        ports = ("--port", str(self.port), "--node-port", str(self.node_port))
        done = self.run("broker-config", str(self.broker), "--host", "127.0.0.1", *ports, *words)
        assert done.returncode == 0, done.stderr
        assert "but first" not in done.stderr
        return done.stdout

    @contextlib.contextmanager
    def mosquitto(self) -> Iterator[None]:
        """Mosquitto, started by the command that `broker-config` printed."""
        program = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")
        with subprocess.Popen(
            [program or "mosquitto", "-c", str(self.broker / "mosquitto.conf")], text=True,
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, user=self.user, group=self.user,
            extra_groups=None if self.user is None else [],
        ) as process:  # fmt: skip
            assert process.stderr is not None
            try:
                while " running" not in (line := process.stderr.readline()):
                    assert line, "the broker ended"
                    assert "rror" not in line, line
                yield
            finally:
                process.terminate()

    async def connect(self, name: str, password: str) -> None:
        """Connect a client to the broker."""
        address = BrokerAddress.parse(
            f"mqtts://127.0.0.1:{self.port}", username=name, password=password,
            ca_file=self.broker / "authorities.pem",
        )  # fmt: skip
        async with Client(address, "home"):
            pass


@as_root
@needs_mosquitto
@pytest.mark.parametrize("user", [None, USER_ID], ids=["root", "a-user"])
def test_setup_works_as_printed_and_repeated(shared: Path, user: int | None) -> None:
    operator = Operator(shared, user)

    done = operator.run("init", "--node-id", "big")
    assert done.returncode == 0, done.stderr
    name, password = operator.configure("--client", "alice").split()
    with operator.mosquitto():
        run(operator.connect(name, password))
    # Mosquitto owns its database; it must be able to read rewritten files.
    assert (operator.broker / "mosquitto.db").exists()
    second = operator.configure("--client", "alice", "--client", "bob").split()
    assert second[0] == "bob"
    with operator.mosquitto():
        run(operator.connect(name, password))
        run(operator.connect(*second))
    for path in operator.broker.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o77 == 0, path


@as_root
def test_directory_that_mosquitto_cannot_access_is_reported(shared: Path) -> None:
    operator = Operator(shared)
    operator.run("init", "--node-id", "big")
    shared.chmod(0o700)
    done = operator.run("broker-config", str(operator.broker), "--host", "127.0.0.1")
    assert (done.returncode, f"chmod o+x {shared}" in done.stderr) == (0, True)
    shared.chmod(0o755)
    given = shared / "given"
    given.mkdir(mode=0o755)
    account = broker_account()
    assert account is not None
    done = operator.run("broker-config", str(given), "--host", "127.0.0.1")
    assert f"chown {account.pw_name} {given}" in done.stderr
    assert (given.stat().st_uid, stat.S_IMODE(given.stat().st_mode)) == (0, 0o755)


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o1777])
def test_directories_and_files_of_others_are_left_as_they_are(tmp_path: Path, mode: int) -> None:
    operator = Operator(tmp_path)
    config = str(tmp_path / "known")
    assert operator.run("--credentials", config, "init", "--node-id", "big").returncode == 0
    directory = tmp_path / "theirs"
    directory.mkdir()
    directory.chmod(mode)
    for name in ("mosquitto.conf", "passwords", "authorities.pem", "other"):
        (directory / name).write_text(name)
        before = directory.stat()
        commands = [
            ("--credentials", config, "broker-config", str(directory), "--host", "h"),
            ("--credentials", str(directory), "init"),
        ]
        # `init` succeeds beside files that it does not write.
        for words in commands if name == "authorities.pem" else commands[:1]:
            done = operator.run(*words)
            assert (done.returncode, "left as it" in done.stderr) == (2, True), done.stderr
            assert "Traceback" not in done.stderr
        after = directory.stat()
        assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)
        assert [path.name for path in directory.iterdir()] == [name]
        assert (directory / name).read_text() == name
        (directory / name).unlink()


def test_directory_that_all_users_may_write_is_refused_for_secrets(tmp_path: Path) -> None:
    operator = Operator(tmp_path)
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    done = operator.run("--credentials", str(open_to_all), "init")
    assert (done.returncode, f"chmod o-w {open_to_all}" in done.stderr) == (2, True)
    assert stat.S_IMODE(open_to_all.stat().st_mode) == 0o777
    given = tmp_path / "given"
    given.mkdir()
    given.chmod(0o755)
    assert operator.run("--credentials", str(given), "init").returncode == 0
    assert stat.S_IMODE(given.stat().st_mode) == 0o755
    assert all(path.stat().st_mode & 0o77 == 0 for path in given.iterdir())
