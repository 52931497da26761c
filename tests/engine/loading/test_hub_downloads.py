"""Models of a hub are downloaded once, with progress; what is missing there is named."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgecosine import zoo
from edgecosine.engine.loading.load import load_target
from edgecosine.engine.options import LoadOptions
from edgecosine.errors import ModelUnavailable

MODEL = zoo.DIRECTORY / zoo.drafter_names()[0]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each load of `hub_downloads.py` came to."""
    directory = tmp_path_factory.mktemp("hub")
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.loading.hub_downloads", directory, MODEL],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_checkpoint_is_downloaded_once_with_progress(reports: list[dict[str, Any]]) -> None:
    first, second = reports[:2]
    assert first["outcome"] == second["outcome"] == "loaded zoo"
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= {*first["sent"]}
    assert "progress: of=model.safetensors done=100%" in first["progress"]
    assert "model.safetensors" not in second["sent"]


def test_gguf_file_is_downloaded_by_its_name(reports: list[dict[str, Any]]) -> None:
    assert reports[2]["outcome"] == "loaded tiny.gguf"
    assert reports[2]["sent"] == ["tiny.gguf"]
    assert "progress: of=tiny.gguf done=100%" in reports[2]["progress"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (3, "org/files has no config.json in the model hub; of a model with GGUF files name one"),
        (4, "org/files has no file other.gguf in the model hub"),
        (5, "there is no 'org/nothing': the model hub has no such model, or it is private"),
        (6, "there is no 'org/nothing': the model hub has no such model, or it is private"),
        (7, "cannot load 'org/no-weights', its weights: "),
    ],
)
def test_what_is_missing_is_named(number: int, said: str, reports: list[dict[str, Any]]) -> None:
    assert reports[number]["outcome"].startswith(said)


@pytest.mark.parametrize("gguf", ["", "x.gguf"])
def test_without_a_network_the_error_says_so(gguf: str) -> None:
    with pytest.raises(ModelUnavailable, match="of org/new: the model hub cannot be reached"):
        load_target(LoadOptions("org/new", gguf=gguf, threads=1, slots=1, device="cpu"))


def test_a_hub_that_is_not_reached_is_asked_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    away = {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "*",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "from edgecosine.engine.loading.sources import hub_file\n"
         "hub_file('no-such/model', 'config.json')"],
        env=os.environ | away, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "of no-such/model: the model hub cannot be reached" in done.stderr.splitlines()[-1]
    assert "Retry" not in done.stderr
