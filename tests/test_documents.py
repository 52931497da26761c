"""Documents name only what is there: files of the package, records, tests, other documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "docs/THREATS.md")
RECORD = re.compile(r"docs/measured/[\w.-]+?\.json")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
MODULE = re.compile(r"`((?:\w+/)+\w+\.(?:py|cpp|h))`")
TEST = re.compile(r"\btest_\w+\b")


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_records_and_links_are_there(document: str) -> None:
    told = read(document)
    places = {ROOT / record for record in RECORD.findall(told)}
    places |= {(ROOT / document).parent / link for link in LINK.findall(told)}
    assert [place for place in places if not place.exists()] == []


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "docs/THREATS.md"])
def test_modules_are_there(document: str) -> None:
    modules = set(MODULE.findall(read(document)))
    missing = {
        module for module in modules
        if not (ROOT / module).exists() and not (ROOT / "edgecosine" / module).exists()
    }  # fmt: skip
    assert missing == set()


def test_threats_are_met_by_tests_that_exist() -> None:
    named = set(TEST.findall(read("docs/THREATS.md")))
    files = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert named - files == set()


def test_code_refers_to_no_document_that_is_not_here() -> None:
    named = re.compile(r"\b([A-Z]{4,}\.md|DESIGN|SPIKES)\b")
    here = {path.name for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))}
    for path in (ROOT / "edgecosine").rglob("*.py"):
        assert set(named.findall(path.read_text(encoding="utf-8"))) <= here, path
