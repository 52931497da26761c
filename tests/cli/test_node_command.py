"""`edgecosine node`: settings from the command line, the environment and a file, in this order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from edgecosine.cli.node import command, node_config
from edgecosine.config import NodeConfig
from edgecosine.engine.options import LoadOptions
from edgecosine.mqtt.broker_address import BrokerAddress

WANTED = ["--role", "drafter", "--model", "ngram"]
TARGET = ["--role", "target", "--model", "m"]


def settings(args: list[str], env: dict[str, str] | None = None) -> NodeConfig:
    """The settings with which the command would run a node."""
    found: list[NodeConfig] = []

    def keep(config: Path | None, log_level: str, **options: Any) -> None:
        found.append(node_config(**options))

    twin = click.Command("node", params=command.params, callback=keep)
    result = CliRunner(env=env or {}).invoke(twin, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return found[0]


def refusal(args: list[str], env: dict[str, str] | None = None) -> str:
    """The command's error for wrong settings, in one line."""
    result = CliRunner(env=env or {}).invoke(command, args, catch_exceptions=False)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def toml(folder: Path, text: str) -> str:
    path = folder / "node.toml"
    path.write_text(text)
    return str(path)


def test_defaults_are_those_of_the_settings() -> None:
    found = settings(WANTED)
    assert found == NodeConfig(role="drafter", node_id=found.node_id, engine=LoadOptions("ngram"))
    assert "-drafter-" in found.node_id
    assert settings(WANTED).node_id != found.node_id


def test_command_line_comes_before_environment_before_file(tmp_path: Path) -> None:
    file = toml(tmp_path, 'cluster = "file"\nbroker = "mqtt://file"\nslots = 3\nrole = "drafter"')
    env = {"EDGECOSINE_CLUSTER": "env", "EDGECOSINE_BROKER": "mqtt://env", "EDGECOSINE_MODEL": "e"}
    found = settings(["--config", file, "--cluster", "line"], env)
    assert (found.cluster, found.broker, found.engine.slots) == (
        "line",
        BrokerAddress("env", 1883),
        3,
    )
    assert (found.role, found.engine.model) == ("drafter", "e")
    assert settings([], env | {"EDGECOSINE_CONFIG": file}).cluster == "env"


def test_every_option_is_read_from_the_environment() -> None:
    env = {
        "EDGECOSINE_MDNS": "no",
        "EDGECOSINE_PEER": "a:1 b:2",
        "EDGECOSINE_MAX_SESSIONS": "2",
        "EDGECOSINE_NODE_ID": "me",
        "EDGECOSINE_CORES": "0",
    }
    found = settings([*WANTED], env)
    assert not found.links.mdns
    assert found.links.peers == ("a:1", "b:2")
    assert (found.max_sessions, found.node_id) == (2, "me")


def test_every_option_is_read_from_a_file(tmp_path: Path) -> None:
    file = toml(
        tmp_path,
        'mdns = false\npeer = ["a:1", "b:2"]\nmax-sessions = 2\nnode_id = "me"\nthreads = 2\n',
    )
    found = settings([*WANTED, "--config", file])
    assert not found.links.mdns
    assert found.links.peers == ("a:1", "b:2")
    assert (found.max_sessions, found.node_id, found.engine.threads) == (2, "me", 2)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model", "m"], ["--role", "target", "drafter"]),
        (["--role", "drafter"], ["model", "--model of the drafter"]),
        (["--role", "gateway", "--model", "m", "--http", ":0"], ["model", "none for a gateway"]),
        (["--role", "gateway"], ["http", "HOST:PORT for a gateway"]),
        (["--role", "oracle", "--model", "m"], ["--role", "'oracle'", "target"]),
        ([*WANTED, "--slots", "0"], ["--slots", "0", "1<=x<=1024"]),
        ([*WANTED, "--slots", "many"], ["--slots", "'many'"]),
        ([*WANTED, "--dtype", "int3"], ["--dtype", "'int3'", "bfloat16"]),
        ([*WANTED, "--cluster", "a b"], ["cluster", "'a b'", "1 to 64"]),
        ([*WANTED, "--node-id", "a/b"], ["node_id", "'a/b'", "1 to 64"]),
        ([*WANTED, "--cores", "x"], ["cores", "'x'", "0,2-3"]),
        ([*WANTED, "--cores", "4000"], ["cores", "'4000'", "processors of this machine"]),
        ([*TARGET, "--quantize", "nf4"], ["quantize", "'nf4'", "none for a target"]),
        ([*WANTED, "--tensor-parallel", "0"], ["--tensor-parallel", "0", "1<=x<=64"]),
        ([*WANTED, "--tensor-parallel", "2"], ["tensor_parallel", "2", "1 for a drafter"]),
        ([*TARGET, "--tensor-parallel", "2", "--ballast", "4"], ["tensor_parallel", "ballast"]),
        ([*TARGET, "--tensor-parallel", "2", "--cores", "0"], ["tensor_parallel", "taskset"]),
        ([*TARGET, "--committee", "a=0.6", "--committee", "b=0.5"], ["committee", "at most 1"]),
        ([*TARGET, "--committee", "a=0.6", "--committee", "a=0.1"], ["committee", "NAME=WEIGHT"]),
        ([*TARGET, "--committee", "a=none"], ["committee", "NAME=WEIGHT"]),
        ([*WANTED, "--committee", "a=0.5"], ["committee", "none for a drafter"]),
        ([*WANTED, "--member", "a"], ["member", "none for a drafter"]),
        ([*WANTED, "--speed", "9"], ["--speed"]),
        ([*WANTED, "--config", "/nowhere.toml"], ["--config", "/nowhere.toml"]),
    ],
)
def test_wrong_value_is_refused_with_key_value_and_allowed_values(
    args: list[str], words: list[str]
) -> None:
    error = refusal(args)
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slotz = 3", ["slotz", "3", "slots"]),
        ('slots = "many"', ["--slots", "'many'"]),
        ('peer = "host:1"', ["--peer", "iterable"]),
        ("slots = 0", ["--slots", "0", "1<=x<=1024"]),
        ('role = "oracle"', ["--role", "'oracle'"]),
        ("slots = [", ["config", "TOML"]),
        ('config = "other.toml"', ["config", "one of"]),
        ("[node]", ["node", "one of"]),
    ],
)
def test_wrong_file_is_refused_with_key_value_and_allowed_values(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    args = ["--model", "m", "--config", toml(tmp_path, text)]
    error = refusal(args if "role" in text else [*args, "--role", "drafter"])
    assert all(word in error for word in words), error


def test_wrong_environment_variable_is_refused_with_its_option() -> None:
    error = refusal(WANTED, {"EDGECOSINE_SLOTS": "none"})
    assert all(word in error for word in ["--slots", "'none'"]), error


def test_tensor_parallel_target_is_read_from_a_file(tmp_path: Path) -> None:
    found = settings([*TARGET, "--config", toml(tmp_path, "tensor-parallel = 4")])
    assert found.engine.tensor_parallel == 4


def test_sessions_never_outnumber_slots() -> None:
    assert settings([*WANTED, "--slots", "2"]).max_sessions == 2


def test_help_names_each_environment_variable() -> None:
    output = CliRunner().invoke(command, ["--help"]).output
    for option in command.params:
        assert isinstance(option.name, str)
        assert re.search(rf"EDGECOSINE_{option.name.upper()}\b(?!/)", output), option.name


def test_gguf_option_takes_a_file_name_without_a_path() -> None:
    found = settings([*TARGET, "--gguf", "model-Q4_K_M.gguf"])
    assert found.engine.gguf == "model-Q4_K_M.gguf"
    for wrong in ("../model.gguf", "model.bin"):
        assert "gguf = " in refusal([*TARGET, "--gguf", wrong])
