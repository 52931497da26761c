"""The files in `deploy/` name options, models and settings that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from edgecosine import models
from edgecosine.cli import main
from edgecosine.cli.node import command as node_command
from edgecosine.config import DRAIN_TIMEOUT_S, read_file

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "systemd/edgecosine@.service"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())
NODES = {name: each for name, each in COMPOSE["services"].items() if name != "broker"}
DOCKERFILE = (DEPLOY / "docker/Dockerfile").read_text().replace("\\\n", " ")

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def options_of(arguments: list[str]) -> dict[str, Any]:
    """The options that a command line of `edgecosine` gives."""
    name, *rest = arguments
    with click.Context(main) as parent:
        command = main.get_command(parent, name)
        assert command is not None
        return command.make_context(name, rest, parent).params


@pytest.mark.parametrize("name", NODES)
def test_services_of_the_compose_file_run_commands_that_exist(name: str) -> None:
    service = NODES[name]
    options = options_of(service["command"])
    assert options["node_id"] == name
    assert options["model"] == models.NGRAM or models.is_known(options["model"])
    assert options["broker"] == "mqtt://broker:1883"
    assert "broker" in service["depends_on"]
    assert set(COMPOSE["volumes"]) >= {each.partition(":")[0] for each in service["volumes"]}
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert seconds(service["stop_grace_period"]) > DRAIN_TIMEOUT_S
    if options["role"] == "drafter":
        assert options["peer"] == (f"target:{port(NODES['target']['command'], '--listen')}",)
        assert service["healthcheck"] == {"disable": True}


def port(command: list[str], option: str) -> str:
    [value] = [each for each in command if each.startswith(option + "=")]
    return value.rpartition(":")[2]


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])


def test_compose_publishes_only_to_this_machine() -> None:
    published = [
        each for service in COMPOSE["services"].values() for each in service.get("ports", ())
    ]
    assert published == ["127.0.0.1:8080:8080"]


def test_broker_of_the_compose_file_has_its_configuration() -> None:
    [mounted] = [each for each in COMPOSE["services"]["broker"]["volumes"] if each.startswith("./")]
    assert (DEPLOY / "docker" / mounted.split(":")[0]).is_file()


def test_image_runs_as_an_unprivileged_user_and_checks_its_health() -> None:
    users = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    assert users
    assert users[-1] != "0"
    assert re.search(r"^HEALTHCHECK .*/health", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^ARG DEVICE=cpu$", DOCKERFILE, re.MULTILINE)
    sources = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    for source in " ".join(sources).split():
        assert (DEPLOY.parent / source).exists()


@pytest.mark.parametrize("name", ["target", "drafter"])
def test_settings_of_the_units_are_options(name: str) -> None:
    known = {parameter.name for parameter in node_command.params if parameter.name}
    settings = read_file(DEPLOY / f"systemd/{name}.toml", known)
    assert settings["role"] == name
    assert settings["model"] == models.NGRAM or models.is_known(settings["model"])


def test_unit_waits_for_the_drain() -> None:
    text = UNIT.read_text()
    assert "\nType=notify\n" in text
    [stop_s] = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert float(stop_s) > DRAIN_TIMEOUT_S


@needs_systemd
def test_systemd_accepts_the_unit_and_finds_it_well_confined(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE)
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", unit],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-300:]
