"""Settings: a wrong one is refused by name, value and what is allowed."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.config import MAX_FILE_BYTES, NodeConfig, parse_cores, read_file
from edgecosine.engine.options import LoadOptions
from edgecosine.errors import ConfigError


def config(**changes: Any) -> NodeConfig:
    """A drafter's settings; a change is made where the field is, in the engine's or the node's."""
    engine = {one.name: changes.pop(one.name) for one in fields(LoadOptions) if one.name in changes}
    given: dict[str, Any] = {"role": "drafter", "node_id": "n", **changes}
    return NodeConfig(engine=LoadOptions(**({"model": "m"} | engine)), **given)


@pytest.mark.parametrize(
    ("key", "changes", "allowed"),
    [
        ("cluster", {"cluster": ""}, "1 to 64"),
        ("cluster", {"cluster": "a b"}, "1 to 64"),
        ("cluster", {"cluster": "x" * 65}, "1 to 64"),
        ("cluster", {"cluster": "home\n"}, "1 to 64"),
        ("node_id", {"node_id": "a/b"}, "1 to 64"),
        ("node_id", {"node_id": "ä"}, "1 to 64"),
        ("quantize", {"role": "target", "quantize": "nf4"}, "none for a target"),
        ("exactness", {"exactness": "bitwise"}, "auto for a drafter"),
        ("max_sessions", {"max_sessions": 9, "slots": 8}, "at most slots = 8"),
        ("tool_format", {"tool_format": "xml"}, "hermes, llama3"),
        ("broker", {"role": "target", "broker": None}, "an MQTT URL"),
        ("cores", {"cores": (0, 99999)}, "processors of this machine"),
    ],
)
def test_wrong_setting_is_refused_by_name(key: str, changes: dict[str, Any], allowed: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        config(**changes)
    error = refusal.value
    assert error.key == key
    assert allowed in error.allowed
    assert str(error) == f"{key} = {error.value!r} is not allowed; expected: {error.allowed}"


def test_settings_are_frozen_behind_the_door() -> None:
    cores = tuple(os.sched_getaffinity(0))
    settings = config(cores=cores, quantize="int8")
    assert settings.cores == cores
    with pytest.raises(AttributeError):
        settings.max_sessions = 9  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("", ()),
        ("3", (3,)),
        ("0,2-4", (0, 2, 3, 4)),
        ("2-2", (2,)),
        ("4,0,4,3-4", (0, 3, 4)),
    ],
)
def test_lists_of_processors(text: str, cores: tuple[int, ...]) -> None:
    assert parse_cores(text) == cores


@pytest.mark.parametrize(
    "text", ["x", "1-", "-1", "1--2", "3-1", "0, 1", "1.5", "0-99999999999", "[0, 2]", "1-2-3"]
)
def test_wrong_list_of_processors_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="processor numbers") as refusal:
        parse_cores(text)
    assert (refusal.value.key, refusal.value.value) == ("cores", text)


@given(st.sets(st.integers(0, 300)))
def test_listed_processors_are_found_again(cores: set[int]) -> None:
    assert parse_cores(",".join(map(str, cores))) == tuple(sorted(cores))


def test_file_gives_settings_by_option_name(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('max-sessions = 3\ncluster = "lab"\n')
    assert read_file(path, {"max_sessions", "cluster"}) == {"max_sessions": 3, "cluster": "lab"}


@pytest.mark.parametrize(
    ("content", "key", "allowed"),
    [
        (b"slotz = 3", "slotz", "one of cluster, slots"),
        (b"[node]\nslots = 3", "node", "one of cluster, slots"),
        (b"slots = ", "config", "a readable TOML file"),
        (b"\xff\xfe", "config", "a readable TOML file"),
        (b"#" * (MAX_FILE_BYTES + 1), "config", f"at most {MAX_FILE_BYTES} bytes"),
    ],
)
def test_wrong_file_is_refused_by_what_is_wrong(
    tmp_path: Path, content: bytes, key: str, allowed: str
) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refusal:
        read_file(path, {"slots", "cluster"})
    assert refusal.value.key == key
    assert allowed in refusal.value.allowed


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="readable"):
        read_file(tmp_path / "none.toml", set())
