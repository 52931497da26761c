"""The package's own names, imported on first use, and what its wheel contains."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import edgecosine

ROOT = Path(__file__).parents[1]


def test_package_gives_client_and_request() -> None:
    from edgecosine import Client, Request
    from edgecosine.client.client import Client as DefinedClient
    from edgecosine.protocol.api.request import Request as DefinedRequest

    assert (Client, Request) == (DefinedClient, DefinedRequest)


def test_unknown_name_raises() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Server'"):
        _ = edgecosine.Server  # type: ignore[attr-defined]


def test_import_of_the_package_loads_no_other_module_of_it() -> None:
    code = "import sys, edgecosine; print([m for m in sys.modules if m.startswith('edgecosine.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_client_loads_no_models() -> None:
    code = "import sys; from edgecosine import Client; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_classes_have_different_names() -> None:
    places: dict[str, list[Path]] = {}
    for path in (ROOT / "edgecosine").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path)
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_wheel_has_all_files_and_runs_in_an_empty_directory(tmp_path: Path) -> None:
    build = (
        "from setuptools.build_meta import build_wheel\n"
        f"build_wheel({str(tmp_path)!r}, {{'--build-option': ['--compression=stored']}})"
    )
    subprocess.run(
        [sys.executable, "-c", build], cwd=_copy(tmp_path / "source"), check=True,
        capture_output=True,
    )  # fmt: skip
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed", [n for n in names if n.endswith(".py")])
    assert {name for name in _tracked() if name.startswith("edgecosine/")} <= names
    shared = {name.partition("/data/share/edgecosine/")[2] for name in names}
    assert {"grafana/edgecosine.json", "systemd/edgecosine@.service"} <= shared
    (tmp_path / "empty").mkdir()
    code = "import edgecosine, sys; from edgecosine.cli import main; print(edgecosine.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "empty", capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
    )  # fmt: skip
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "installed")


def _tracked() -> list[str]:
    """Files of the package and of `deploy/`, of those that git knows."""
    command = ["git", "ls-files", "edgecosine", "deploy", "pyproject.toml", "README.md", "LICENSE"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.split("\n")[:-1]


def _copy(directory: Path) -> Path:
    """A copy of the sources, by links, since a build writes beside them."""
    for name in _tracked():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).symlink_to(ROOT / name)
    return directory
