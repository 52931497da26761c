"""Child processes end on SIGTERM, on SIGKILL when they ignore it, and with their parent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from edgecosine.local.child_processes import spawn, stop
from tests.node.links.wire_fixtures import run

SLEEPER = (sys.executable, "-I", "-S", "-c", "import signal; signal.pause()")


def program(text: str, *args: str) -> tuple[str, ...]:
    return (sys.executable, "-c", textwrap.dedent(text), *args)


def test_output_is_logged_and_the_exit_code_is_the_childs(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def main() -> int:
        child = await spawn(program("import sys; print('out'); sys.exit('err')"), log)
        return await child.wait()

    assert run(main()) == 1
    assert sorted(log.read_text().split()) == ["err", "out"]


def test_stopped_child_ends_by_sigterm(tmp_path: Path) -> None:
    async def main() -> None:
        child = await spawn(SLEEPER, tmp_path / "log")
        await stop(child)
        assert child.returncode == -signal.SIGTERM
        await stop(child)

    run(main())


def test_stop_of_an_ended_child_does_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        child = await spawn(program("pass"), tmp_path / "log")
        await child.wait()
        await stop(child)
        assert child.returncode == 0

    run(main())


def test_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    ignoring = """
        import os, signal, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(sys.argv[1], "w").close()
        while True:
            signal.pause()
    """

    async def main() -> None:
        ready = tmp_path / "ready"
        os.mkfifo(ready)
        child = await spawn(program(ignoring, str(ready)), tmp_path / "log")
        await asyncio.to_thread(ready.read_bytes)
        await stop(child, patience_s=0.05)
        assert child.returncode == -signal.SIGKILL

    run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
def test_child_ends_with_a_killed_parent(tmp_path: Path) -> None:
    """The grandchild holds a FIFO open for writing; its end of file is the grandchild's end."""
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    parent = """
        import asyncio, pathlib, sys
        from edgecosine.local.child_processes import spawn
        child = (
            "import signal, sys; held = open(sys.argv[1], 'w'); "
            "print('here', file=held, flush=True); signal.pause()"
        )
        async def main():
            command = (sys.executable, "-c", child, sys.argv[1])
            await (await spawn(command, pathlib.Path(sys.argv[2]))).wait()
        asyncio.run(main())
    """

    async def main() -> None:
        elder = await asyncio.create_subprocess_exec(
            *program(parent, str(alive), str(tmp_path / "log"))
        )
        reader = await asyncio.to_thread(alive.open)
        with reader:
            assert await asyncio.to_thread(reader.readline) == "here\n"
            elder.kill()
            await elder.wait()
            assert await asyncio.to_thread(reader.read) == ""

    run(main())
