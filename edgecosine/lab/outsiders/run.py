"""`scripts/outsiders [NAME …]`: runs third-party programs and prints their results as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

import click

from edgecosine import zoo
from edgecosine.lab.network.hosts import free_port
from edgecosine.lab.outsiders.catalogue import OUTSIDERS, Outsider, OutsiderRun
from edgecosine.local.cluster import LocalCluster
from edgecosine.local.cluster_plan import local_plan

_INSTALL_S: Final = 1800.0
_RUN_S: Final = 900.0
_SHOWN: Final = 3000


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one program. `said` is its summary, or the reason why it failed or was left out
    (`left`), since it could not be run."""

    name: str
    outcome: Literal["passed", "failed", "left"]
    said: str
    elapsed_s: float = 0.0


class Left(Exception):
    """A program cannot be run here."""


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([each.name for each in OUTSIDERS]))
@click.option(
    "--directory", type=click.Path(path_type=Path), default=Path("build/outsiders"),
    show_default=True, help="Directory of the programs' environments, which are kept.",
)  # fmt: skip
def main(names: tuple[str, ...], directory: Path) -> None:
    """Run third-party programs against a target of the zoo on this machine, each in an environment
    of its own; without NAMES, all. Prints the results as JSON; exits with 1 if a program failed."""
    chosen = [each for each in OUTSIDERS if not names or each.name in names]
    verdicts = asyncio.run(_run_all(chosen, directory.absolute()))
    click.echo(json.dumps([asdict(verdict) for verdict in verdicts], indent=1))
    sys.exit(any(verdict.outcome == "failed" for verdict in verdicts))


async def _run_all(chosen: Sequence[Outsider], directory: Path) -> list[Verdict]:
    drafters = zoo.drafter_names()[:2]
    with tempfile.TemporaryDirectory(prefix="edgecosine-outsiders-") as folder:
        async with _target(drafters, Path(folder)) as one, _target((), Path(folder)) as other:
            return [await _judge(each, directory, one, other) for each in chosen]


@contextlib.asynccontextmanager
async def _target(drafters: Sequence[str], folder: Path) -> AsyncIterator[OutsiderRun]:
    """A target of the zoo with these drafters."""
    port, broker_port = free_port(), free_port()
    plan = local_plan(
        zoo.TARGET, drafters, cluster="outsiders", ballast=1, target_cores="", drafter_cores="",
        broker=None, broker_port=broker_port, http=f"127.0.0.1:{port}",
    )  # fmt: skip
    # The tiny target's template implies no format of tool calls.
    options = (*plan.target.options, "--tool-format", "hermes")
    plan = replace(plan, target=replace(plan.target, options=options))
    async with LocalCluster(plan, lambda line: click.echo(line, err=True)):
        yield OutsiderRun(f"http://127.0.0.1:{port}", zoo.TARGET, folder)


async def _judge(
    outsider: Outsider, directory: Path, one: OutsiderRun, other: OutsiderRun
) -> Verdict:
    click.echo(f"running {outsider.name}", err=True)
    started = time.monotonic()
    try:
        await asyncio.to_thread(_check_served, one.url, outsider.needs)
        programs = await _environment(outsider, directory)
        said = await _run(outsider, programs, replace(one, folder=one.folder / outsider.name))
        if outsider.is_twice:
            folder = one.folder / f"{outsider.name}-alone"
            alone = await _run(outsider, programs, replace(other, folder=folder))
            _check_same(said, alone)
    except Left as reason:
        return Verdict(outsider.name, "left", str(reason)[-_SHOWN:])
    except (ValueError, LookupError, OSError) as reason:
        elapsed_s = round(time.monotonic() - started, 1)
        return Verdict(outsider.name, "failed", str(reason)[-_SHOWN:], elapsed_s)
    return Verdict(outsider.name, "passed", said, round(time.monotonic() - started, 1))


def _check_same(said: str, alone: str) -> None:
    """Raises ValueError."""
    if said != alone:
        raise ValueError(f"with drafters: {said}; without: {alone}")


async def _environment(outsider: Outsider, directory: Path) -> Path:
    """The `bin` of a program's environment, which is made at the first run.

    Raises Left.
    """
    place = directory / outsider.name
    mark = place / "installed"
    if not await asyncio.to_thread(mark.exists):
        for command in (
            (sys.executable, "-m", "venv", str(place)),
            (f"{place}/bin/pip", "install", "--quiet", *outsider.packages),
        ):
            code, output = await _call(command, _INSTALL_S)
            if code:
                raise Left(f"not installable: {output[-300:]}")
        await asyncio.to_thread(mark.touch)
    return place / "bin"


async def _run(outsider: Outsider, programs: Path, setting: OutsiderRun) -> str:
    """Run a program; returns a line about the run.

    Raises ValueError if it failed.
    """
    await asyncio.to_thread(setting.folder.mkdir, parents=True)
    program, *arguments = outsider.command(setting)
    code, output = await _call(
        (str(programs / program), *arguments), _RUN_S, outsider.cwd or setting.folder
    )
    if code:
        raise ValueError(f"exit code {code}: {output[-_SHOWN:]}")
    return outsider.summary(output, setting)


async def _call(command: Sequence[str], limit_s: float, cwd: Path | None = None) -> tuple[int, str]:
    """Exit code and output of a program; the code is 124 if the program exceeded `limit_s`."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(limit_s):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return 124, f"not done after {limit_s:.0f} s"
    return process.returncode or 0, output.decode(errors="replace")


def _check_served(url: str, path: str) -> None:
    """Raises Left."""
    try:
        with urllib.request.urlopen(url + path, timeout=10):  # noqa: S310 -- our own target
            return
    except urllib.error.URLError as error:
        raise Left(f"the target does not serve {path}: {error}") from error


if __name__ == "__main__":
    main()
