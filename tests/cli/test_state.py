"""Names last from start to start, and nodes of one machine have names of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edgecosine.cli.state import lasting_place


def place_of_a_process(
    base: Path, drawn: str, *, stays: bool = False
) -> tuple[subprocess.Popen[str], str]:
    """A process that has taken a place; `stays` until its input ends."""
    code = (
        "import sys; from pathlib import Path; from edgecosine.cli.state import lasting_place;"
        f"print(lasting_place(Path({str(base)!r}), 'drafter-ngram', {drawn!r}), flush=True);"
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


def test_names_last_and_nodes_that_run_side_by_side_have_others(tmp_path: Path) -> None:
    first, said = place_of_a_process(tmp_path, "one", stays=True)
    second, said_beside = place_of_a_process(tmp_path, "two", stays=True)
    assert "'one'" in said
    assert "'two'" in said_beside
    end(first)
    again, said_again = place_of_a_process(tmp_path, "three")
    assert said_again == said
    for process in (again, second):
        end(process)


def test_where_nothing_can_be_kept_the_name_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert lasting_place(tmp_path / "file", "drafter", "drawn") == (None, "drawn")
