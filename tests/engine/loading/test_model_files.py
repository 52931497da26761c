"""Finding model directories and detecting missing files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgecosine.engine.loading.model_files import fault_of, files_digest, find_model, zoo_models


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with the files of a complete model."""
    directory = tmp_path / "zoo" / "fable"
    directory.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (directory / name).write_text("{}")
    return directory


def test_complete_model_has_no_fault(model: Path) -> None:
    assert fault_of(model) is None


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", "no .safetensors file"),
        ("tokenizer.json", "no tokenizer file"),
    ],
)
def test_missing_file_is_named(model: Path, name: str, fault: str) -> None:
    (model / name).unlink()
    assert fault_of(model) == fault


def test_missing_shard_is_named(model: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "second.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fault_of(model) == "second.safetensors is missing"
    (model / "second.safetensors").write_text("{}")
    assert fault_of(model) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": 3}'])
def test_broken_index_is_named(model: Path, text: str) -> None:
    (model / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json cannot be read" in str(fault_of(model))


def test_git_lfs_pointer_in_place_of_weights_is_named(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "model.safetensors is a Git LFS pointer" in str(fault_of(model))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_git_lfs_pointer_in_place_of_another_file_is_named(model: Path, name: str) -> None:
    (model / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert fault_of(model) == f"{name} is a Git LFS pointer: run `git lfs pull`"
    (model / name).write_text("")
    assert fault_of(model) == f"{name} is empty"


@pytest.mark.parametrize(
    "names",
    [
        ["tokenizer.model"],
        ["spiece.model"],
        ["vocab.txt"],
        ["vocab.json", "merges.txt"],
        ["q.tiktoken"],
    ],
)
def test_each_kind_of_vocabulary_is_accepted(model: Path, names: list[str]) -> None:
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").write_text("{}")
    assert fault_of(model) == "no tokenizer file"
    for name in names:
        (model / name).write_text("a")
    assert fault_of(model) is None


@pytest.mark.parametrize(
    ("left", "missing"), [("vocab.json", "merges.txt"), ("merges.txt", "vocab.json")]
)
def test_incomplete_vocabulary_is_refused(model: Path, left: str, missing: str) -> None:
    (model / "tokenizer.json").rename(model / left)
    assert fault_of(model) == f"tokenizer.json or {missing} is missing"


def test_adapter_is_refused_as_a_model(model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    assert "merge it into its model first" in str(fault_of(model))


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "chat_template.jinja", "chat_template.json",
     "additional_chat_templates/tool_use.jinja", "special_tokens_map.json", "added_tokens.json",
     "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt",
     "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"],
)  # fmt: skip
def test_identity_covers_every_file_that_changes_answers(model: Path, name: str) -> None:
    seen = {files_digest(model)}
    file = model / name
    file.parent.mkdir(exist_ok=True)
    for text in ("[]", '{"eos_token_id": 5}', '{"eos_token_id": 55}'):
        file.write_text(text)
        seen.add(files_digest(model))
    assert len(seen) == 4


def test_identity_ignores_files_without_effect(model: Path) -> None:
    before = files_digest(model)
    for name in ("README.md", "trainer_state.json", "figure.png"):
        (model / name).write_text("words")
    assert files_digest(model) == before


@pytest.mark.parametrize(
    ("name", "value", "below"),
    [("HF_HUB_CACHE", "{}/a", ""), ("HUGGINGFACE_HUB_CACHE", "{}/a", ""),
     ("HF_HOME", "{}/a", "hub"),
     ("XDG_CACHE_HOME", "{}/a", "huggingface/hub"), ("HF_HOME", "~/a", "hub"),
     ("HF_HOME", "$HOME/a", "hub")],
)  # fmt: skip
def test_hub_models_are_found_in_the_hub_cache(
    name: str, value: str, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(name, value.format(tmp_path))
    hub = tmp_path / "a" / below / "models--owner--fable"
    for revision in ("old", "new"):
        (hub / "snapshots" / revision).mkdir(parents=True)
    os.utime(hub / "snapshots" / "old", (1, 1))
    assert find_model("owner/fable", tmp_path / "zoo") == hub / "snapshots" / "new"
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("old")
    assert find_model("owner/fable", tmp_path / "zoo") == hub / "snapshots" / "old"


def test_directory_is_not_taken_for_a_model_of_the_zoo(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert find_model(".", model.parent) == Path()
    assert find_model("", model.parent) == Path()


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
