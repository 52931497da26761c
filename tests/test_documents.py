"""Documents name only what exists: files, links, records, tests, commands, options, tables."""

from __future__ import annotations

import json
import re
import shlex
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from edgecosine.cli import main
from edgecosine.lab.bench.table import places, read_report, tables

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
)
CURRENT = [document for document in DOCUMENTS if document != "CHANGELOG.md"]
"""Documents that describe the present; the changelog also describes the past."""

LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
SPAN = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"(?:[\w.-]+/)+(?:[\w-]+\.(?:py|cpp|h|json|md|sh))?|scripts/\w+|\.ci/run")
PACKAGES = frozenset(path.name for path in (ROOT / "edgecosine").iterdir() if path.is_dir())
ROOTS = frozenset({"docs", "edgecosine", "scripts", "tests", ".ci"}) | PACKAGES
TEST = re.compile(r"\btest_\w+\b(?!\.\w|/)")
OPTION = re.compile(r"--[a-z][a-z-]*[a-z]")
SCRIPTS = {"scripts/demo": "demo", "scripts/bench": "bench"}
TOPIC = "edgecosine/home/"
MAX_README_LINES = 140
MAX_COLUMNS = 112
DEMO_PROMPTS = 4
"""Of each domain, in the record of the demo."""


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def code(document: str) -> list[str]:
    """The lines of code blocks, then the code in the text; a `\\` joins two lines."""
    text = read(document)
    lines = [line for block in FENCE.findall(text) for line in block.split("\n")[1:-1]]
    joined = "\n".join(lines).replace("\\\n", " ").split("\n")
    return joined + SPAN.findall(FENCE.sub("", text).replace("\n", " "))


def anchors(path: Path) -> set[str]:
    """The names by which links reach the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    missing = set()
    for target, anchor in LINK.findall(read(document)):
        path = (ROOT / document).parent / target if target else ROOT / document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            missing.add(f"{target}#{anchor}")
    assert missing == set()


@pytest.mark.parametrize("document", CURRENT)
def test_paths_exist(document: str) -> None:
    named = {path for span in code(document) for path in PATH.findall(span)}
    ours = {path for path in named if path.split("/")[0] in ROOTS and not path.startswith(TOPIC)}
    missing = {
        path for path in ours
        if not (ROOT / path).exists() and not (ROOT / "edgecosine" / path).exists()
    }  # fmt: skip
    assert missing == set()


@pytest.mark.parametrize("document", CURRENT)
def test_tests_that_are_named_exist(document: str) -> None:
    files = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(TEST.findall(read(document))) - files == set()


def commands(document: str) -> Iterator[list[str]]:
    """The words after `edgecosine` of each command line that a document shows or names."""
    for line in code(document):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # an apostrophe: no command line
            continue
        if words and words[0] == "edgecosine":
            yield words[1:]
        elif words and words[0] in SCRIPTS:
            yield [SCRIPTS[words[0]], *words[1:]]


def fault_of(words: list[str]) -> str | None:
    """Why a command line cannot be run; None where command and options exist."""
    command: click.Command = main
    rest = iter(words)
    for word in rest:
        if word.startswith("--") and word != "--help":
            options = {name: each for each in command.params for name in spellings(each)}
            option = options.get(word)
            if option is None:
                return f"{command.name} has no option {word}"
            if not getattr(option, "is_flag", False):
                for _ in range(option.nargs):
                    next(rest, None)
        elif isinstance(command, click.Group):
            child = command.get_command(click.Context(command), word)
            if child is None:
                return f"{command.name} has no command {word}"
            command = child
    return None


def spellings(option: click.Parameter) -> tuple[str, ...]:
    """All names of an option, `--no-…` included."""
    return (*option.opts, *option.secondary_opts)


def options_of(command: click.Command) -> set[str]:
    """All option names of a command and of those below it."""
    names = {name for option in command.params for name in spellings(option)}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            names |= options_of(child)
    return names


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_their_options_exist(document: str) -> None:
    faults = {" ".join(words): fault_of(words) for words in commands(document)}
    assert {line: fault for line, fault in faults.items() if fault} == {}


@pytest.mark.parametrize(
    ("line", "is_right"),
    [
        ("node --role target", True),
        ("bench --quick", True),
        ("bench table RECORD --into FILE", True),
        ("bench --only eight --rates 1 2 table RECORD", True),
        ("nodes", False),
        ("bench tables RECORD", False),
        ("cluster part", False),
        ("ask --louder", False),
        ("bench table RECORD --out FILE", False),
    ],
)
def test_wrong_command_lines_are_found(line: str, is_right: bool) -> None:
    assert (fault_of(line.split()) is None) is is_right


@pytest.mark.parametrize("document", CURRENT)
def test_options_that_are_named_exist(document: str) -> None:
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (*(ROOT / "edgecosine").rglob("*.py"), *(ROOT / "scripts").iterdir())
    )
    known = set(OPTION.findall(source)) | options_of(main) | {"--help"}
    spans = [span for span in SPAN.findall(read(document)) if not span.startswith("docker")]
    named = {option for span in spans for option in OPTION.findall(span)}
    assert named - known == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tables_are_those_of_their_records(document: str) -> None:
    for record, table in places(read(document)).items():
        assert table == tables(read_report(ROOT / record)), (
            f"run: edgecosine bench table {record} --into {document}"
        )


def test_domains_of_the_demo_are_those_of_its_record() -> None:
    """Totals over the greedy prompts, which each domain's runs begin with."""
    runs: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in json.loads(read("docs/measured/demo.json"))["runs"]:
        runs[run["domain"], run["policy"]].append(run)
    text = read("docs/benchmarks.md")
    for domain in {domain for domain, _ in runs}:
        together, alone = (
            runs[domain, policy][:DEMO_PROMPTS] for policy in ("edgecosine", "target-alone")
        )
        speedups = [
            ours["tokens_per_s"] / theirs["tokens_per_s"]
            for ours, theirs in zip(together, alone, strict=True)
        ]
        rates = [
            sum(run["num_tokens"] for run in group) / sum(run["elapsed_s"] for run in group)
            for group in (together, alone)
        ]
        row = f"| {domain} | {rates[0]:.1f} | {rates[1]:.1f} | {statistics.median(speedups):.2f} |"
        assert row in text


def test_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) < MAX_README_LINES


@pytest.mark.parametrize("document", DOCUMENTS)
def test_lines_are_not_wide(document: str) -> None:
    lines = read(document).splitlines()
    assert [line for line in lines if len(line) > MAX_COLUMNS and not line.startswith("|")] == []


def test_threat_model_names_tests() -> None:
    assert TEST.findall(read("docs/THREATS.md"))


def test_code_refers_to_no_document_that_is_not_here() -> None:
    named = re.compile(r"\b([A-Z]{4,}\.md|DESIGN|SPIKES)\b")
    here = {path.name for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))}
    for path in (ROOT / "edgecosine").rglob("*.py"):
        assert set(named.findall(path.read_text(encoding="utf-8"))) <= here, path
