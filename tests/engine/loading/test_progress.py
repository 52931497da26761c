"""Long loads log their progress; short ones log nothing."""

from __future__ import annotations

import logging
import sys

import pytest
from huggingface_hub.utils.tqdm import _get_progress_bar_context
from transformers.utils import logging as transformers_logging

from edgecosine import zoo
from edgecosine.engine.loading import progress
from edgecosine.engine.loading.load import load_target
from edgecosine.engine.loading.progress import LoggedProgress, download_bar, showing_progress
from edgecosine.engine.options import LoadOptions

MODEL = zoo.drafter_names()[0]


def test_load_without_a_terminal_logs_its_share(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "PERIOD_S", 0.0)
    with caplog.at_level(logging.INFO, logger=progress.__name__):
        load_target(LoadOptions(MODEL, threads=1, slots=1, device="cpu"))
    lines = [record.getMessage() for record in caplog.records if record.name == progress.__name__]
    assert lines[-1] == "progress: of=Loading weights done=100%"
    assert len(lines) > 2


def test_short_load_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=progress.__name__):
        load_target(LoadOptions(MODEL, threads=1, slots=1, device="cpu"))
    assert not [record for record in caplog.records if record.name == progress.__name__]


def test_lines_of_the_hubs_client_have_the_handlers_of_this_process_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    load_target(LoadOptions(MODEL, threads=1, slots=1, device="cpu"))
    logging.getLogger("huggingface_hub.utils").warning("retrying")
    assert [record.getMessage() for record in caplog.records] == ["retrying"]
    assert not logging.getLogger("huggingface_hub").handlers


def test_terminal_gets_the_libraries_bars(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load_target(LoadOptions(MODEL, threads=1, slots=1, device="cpu"))
    assert "Loading weights: 100%" in capsys.readouterr().err


def test_progress_hook_is_removed_after_the_load() -> None:
    with showing_progress("x"):
        assert isinstance(transformers_logging.tqdm([1, 2]), LoggedProgress)
    assert not isinstance(transformers_logging.tqdm([1, 2]), LoggedProgress)


def test_downloads_are_logged_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "PERIOD_S", 0.0)
    # As huggingface_hub makes one for each file.
    bar = _get_progress_bar_context(
        desc="model.gguf", log_level=logging.WARNING, total=10, tqdm_class=download_bar()
    )
    with caplog.at_level(logging.INFO, logger=progress.__name__), bar as shown:
        for _ in range(2):
            shown.update(5)
    assert "progress: of=model.gguf done=100%" in caplog.text
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert download_bar() is None
