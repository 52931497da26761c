"""`pip install edgecosine` without the extra `models`: running commands, and errors of others."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecosine.cli.exit_status import MISUSED, TERMINATED

BLOCKED = (
    "torch", "transformers", "bitsandbytes", "accelerate", "safetensors", "tokenizers", "gguf",
    "huggingface_hub", "tqdm",
)  # fmt: skip
PROGRAM = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
from edgecosine.cli import main
main(prog_name="edgecosine")
"""
INSTALL = "pip install 'edgecosine[models]'"


@contextlib.contextmanager
def edgecosine(*arguments: str, home: Path) -> Iterator[subprocess.Popen[str]]:
    """The command line in a process that cannot import the blocked packages."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("EDGECOSINE_")}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**env, "HOME": str(home), "XDG_STATE_HOME": str(home), "XDG_CONFIG_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run_to_end(*arguments: str, home: Path) -> tuple[int, str]:
    """Exit code and output of a command."""
    with edgecosine(*arguments, home=home) as process:
        output, _ = process.communicate(timeout=60)
    return process.returncode, output


def test_help_and_doctor_run(tmp_path: Path) -> None:
    code, output = run_to_end("--help", home=tmp_path)
    assert (code, "status" in output) == (0, True)
    code, output = run_to_end("doctor", "--model", "ngram", home=tmp_path)
    assert "not installed" in output
    assert INSTALL not in output
    code, output = run_to_end("doctor", home=tmp_path)
    assert (code, INSTALL in output) == (1, True)


@pytest.mark.parametrize("command", ["ask", "broker", "status", "cluster", "forget"])
def test_client_commands_run(command: str, tmp_path: Path) -> None:
    assert run_to_end(command, "--help", home=tmp_path)[0] == 0


def test_ngram_drafter_runs(tmp_path: Path) -> None:
    arguments = ("--role", "drafter", "--model", "ngram", "--broker", "none", "--no-mdns")
    with edgecosine("node", *arguments, home=tmp_path) as process:
        assert process.stdout is not None
        assert any("listening: " in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == TERMINATED


@pytest.mark.parametrize(
    "arguments",
    [
        ("node", "--role", "target", "--model", "target", "--no-journal"),
        ("node", "--role", "drafter", "--model", "drafter-code", "--broker", "none"),
        ("up",),
        ("demo",),
        ("model", "show", "smollm2-135m-instruct/code"),
    ],
)
def test_commands_that_need_a_model_name_the_extra(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    code, output = run_to_end(*arguments, home=tmp_path)
    error = output.strip().splitlines()[-1]
    assert (code, error.startswith("Error: "), error.endswith(INSTALL)) == (MISUSED, True, True)
    assert "Traceback" not in output
