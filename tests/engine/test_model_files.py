"""What is missing from a model's directory, and where models are looked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgecosine.engine.model_files import fault_of, find_model, zoo_models


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory that looks like a whole model."""
    directory = tmp_path / "zoo" / "fable"
    directory.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (directory / name).write_text("{}")
    return directory


def test_a_whole_model_has_no_fault(model: Path) -> None:
    assert fault_of(model) is None


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", "no .safetensors file"),
        ("tokenizer.json", "no tokenizer file"),
    ],
)
def test_a_missing_file_is_named(model: Path, name: str, fault: str) -> None:
    (model / name).unlink()
    assert fault_of(model) == fault


def test_a_missing_shard_is_named(model: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "second.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fault_of(model) == "second.safetensors is missing"
    (model / "second.safetensors").write_text("{}")
    assert fault_of(model) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": 3}'])
def test_a_broken_index_is_named(model: Path, text: str) -> None:
    (model / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json cannot be read" in str(fault_of(model))


def test_a_pointer_in_place_of_weights_is_named(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "model.safetensors is a Git LFS pointer" in str(fault_of(model))


def test_models_are_found_in_the_zoo_on_disk_and_in_the_hubs_cache(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = model.parent
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert zoo_models(zoo) == [model]
    assert find_model("fable", zoo) == model
    assert find_model(str(model), tmp_path) == model
    assert find_model("owner/fable", zoo) is None
    snapshot = tmp_path / "hub" / "models--owner--fable" / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    assert find_model("owner/fable", zoo) == snapshot
    assert find_model("no such model", zoo) is None
