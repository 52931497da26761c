"""A node keeps its name over restarts, and nodes of one machine have different names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edgecosine.cli.state import unused_directory


def process_with_directory(
    base: Path, fresh: str, *, stays: bool = False
) -> tuple[subprocess.Popen[str], str]:
    """A process that has locked a directory, and its output; with `stays` it runs on."""
    code = (
        "import sys; from pathlib import Path; from edgecosine.cli.state import unused_directory;"
        f"print(unused_directory(Path({str(base)!r}), 'drafter-ngram', {fresh!r}), flush=True);"
        + ("sys.stdin.read()" if stays else "")
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_name_is_reused_after_a_restart_and_not_by_a_second_process(tmp_path: Path) -> None:
    first, first_output = process_with_directory(tmp_path, "one", stays=True)
    second, second_output = process_with_directory(tmp_path, "two", stays=True)
    assert "'one'" in first_output
    assert "'two'" in second_output
    end(first)
    again, again_output = process_with_directory(tmp_path, "three")
    assert again_output == first_output
    for process in (again, second):
        end(process)


def test_fresh_name_is_used_where_no_directory_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert unused_directory(tmp_path / "file", "drafter", "fresh") == (None, "fresh")
