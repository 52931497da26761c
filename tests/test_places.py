"""Users without a home, without a name, or with a home that is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgecosine import models
from edgecosine.cli.access import node_credentials
from edgecosine.cli.state import default_state
from edgecosine.errors import ConfigError, ModelUnavailable
from edgecosine.models.catalogue import CATALOGUE
from edgecosine.models.fetching import models_directory
from edgecosine.places import expanded, home_directory, user_directory

NOBODY = 54321
WITHOUT_A_NAME = """
import os, sys
import edgecosine.cli.ask, edgecosine.cli.cluster, edgecosine.cli.doctor, edgecosine.cli.model
import edgecosine.cli.node
from edgecosine.cli import main
os.chdir("/"); os.setgroups([]); os.setgid(54321); os.setuid(54321)
main(prog_name="edgecosine")
"""
"""Rights go after the imports: the interpreter itself may lie where that user cannot look."""


@pytest.fixture(autouse=True)
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("EDGECOSINE_MODELS", raising=False)
    monkeypatch.setattr("os.getuid", lambda: NOBODY)


def test_places_are_those_of_the_variables_or_of_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    assert home_directory() is None
    assert user_directory("CACHE") is None
    for wrong in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", wrong)
        assert user_directory("CACHE") is None
        monkeypatch.setenv("HOME", wrong)
        assert home_directory() is None
    monkeypatch.setenv("HOME", "/home/me")
    assert user_directory("STATE") == Path("/home/me/.local/state/edgecosine")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert user_directory("CACHE") == Path("/cache/edgecosine")


def test_what_cannot_be_kept_says_what_to_set() -> None:
    assert node_credentials(None, "home") is None
    with pytest.raises(ConfigError, match=r"--state-dir DIR or --no-journal"):
        default_state("home", "t")
    with pytest.raises(ModelUnavailable, match="EDGECOSINE_MODELS"):
        models_directory()
    name = next(name for name, entry in CATALOGUE.items() if not entry.terms)
    assert models.find(name) is None
    with pytest.raises(ModelUnavailable, match="EDGECOSINE_MODELS"):
        models.obtain(name)
    assert expanded("~nosuchuser/model") == Path("~nosuchuser/model")


@pytest.mark.parametrize("place", ["/proc", "/dev/null"])
def test_places_that_cannot_be_written_are_named(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECOSINE_MODELS", place)
    name = next(name for name, entry in CATALOGUE.items() if not entry.terms)
    with pytest.raises(ModelUnavailable, match=f"cannot keep {name} in {place}"):
        models.obtain(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="changes who it is")
@pytest.mark.parametrize("home", [None, "/proc", "/root"])
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("ask", "x", "--broker", "mqtt://127.0.0.1:1"), 1, "no connection to 127.0.0.1:1"),
        (("model", "list"), 0, ""),
        (("cluster", "init"), (1, 2), ""),
        (("node", "--role", "target", "--model", "x", "--broker", "http://x"), 2, "--no-journal"),
    ],
)  # fmt: skip
def test_commands_do_without_a_home(
    home: str | None, words: tuple[str, ...], code: int | tuple[int, ...], said: str
) -> None:
    env = {name: value for name, value in os.environ.items() if name != "HOME"}
    if home is not None:
        env["HOME"] = home
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_NAME, *words], env=env, capture_output=True, text=True,
        timeout=30, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode in (code if isinstance(code, tuple) else (code,)), done.stderr
    last = (done.stderr.strip().splitlines() or [""])[-1]
    assert said in last
    assert last.count("Error: ") == (done.returncode != 0)
