"""Tables for the documentation, made only from a benchmark's record.

A document marks the place of a table and its record by two comments:
`<!-- table of docs/bench.json -->` and `<!-- end of table -->`.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edgecosine.errors import LabError
from edgecosine.lab.bench.cells import ALONE, OURS
from edgecosine.lab.bench.charts import compared
from edgecosine.lab.bench.figures import Runs, compare, latency_s, ratios, tokens_per_s
from edgecosine.lab.figures import LEAST_SAMPLES, Figure, interval
from edgecosine.lab.regime_map.map_table import HEAD, map_rows

_PLACE = re.compile(
    r"(?P<start><!-- table of (?P<record>[^ ]+) -->\n)(?P<table>.*?)(?P<end><!-- end of table -->)",
    re.DOTALL,
)

_FEW = f"\nOf figures below n = {LEAST_SAMPLES} the table has the single runs.\n"


def tables(report: Mapping[str, Any]) -> str:
    """All tables of a record as Markdown: the cells with all their policies, the cells of a map if
    it has any, and the figures as they are in the record.

    A record without numbers of prompts is older than fresh prompts; it has a table of the policies
    on the fastest network in place of the cells.
    """
    runs, on_map = report["runs"], map_rows(report["runs"])
    is_fresh = any("first_prompt" in run and "cell" in run for run in runs)
    parts = [
        cell_table(runs) if is_fresh else policy_table(runs),
        _markdown(HEAD, on_map) if on_map else "",
        figure_table(report["figures"]),
    ]
    return "\n".join(part for part in parts if part)


def policy_table(runs: Runs) -> str:
    """Throughput and mean latency by policy and concurrency, as medians of the `n` repetitions, at
    temperature 0 on the network with the least delay."""
    closed = [r for r in runs if "load" in r and r["load"]["kind"] == "closed"]
    greedy = [run for run in compared(closed) if run["temperature"] == 0]
    if not greedy:
        return ""
    calmest = min((run["network"] for run in greedy), key=lambda conditions: conditions["delay_ms"])
    shown = [run for run in greedy if run["network"] == calmest]
    numbers = sorted({run["load"]["concurrency"] for run in shown})
    policies = dict.fromkeys([ALONE, *(run["policy"] for run in shown)])
    head = ["policy", *(f"{n} at a time, tokens/s (latency)" for n in numbers)]
    rows = [
        [policy, *(_cell(shown, policy, number) for number in numbers)]
        for policy in policies
        if any(run["policy"] == policy for run in shown)
    ]
    return _markdown(head, rows)


def cell_table(runs: Runs) -> str:
    """Every policy of every cell.

    Throughput and mean latency are medians with 95% intervals, or the single runs if they are few.
    The other columns are EdgeCoSine's throughput over the policy's, its p value, and the number of
    repetitions in which EdgeCoSine was faster.
    """
    rows = []
    for cell, policy in dict.fromkeys((run["cell"], run["policy"]) for run in runs):
        there = [run for run in runs if (run["cell"], run["policy"]) == (cell, policy)]
        speed, latency = (interval([of(run) for run in there]) for of in (tokens_per_s, latency_s))
        row = [cell, policy, speed.text(0), latency.text(), "–", "–", "–"]
        over = None if policy == OURS else compare(runs, cell, OURS, policy)
        if over is not None:
            wins = [ratio > 1 for ratio in ratios(runs, cell, OURS, policy)]
            row[4:] = [_bare(over), _p(asdict(over)), f"{sum(wins)} of {len(wins)}"]
        rows.append([str(part) for part in row])
    head = ["cell", "policy", "tokens/s", "latency, s", "edgecosine over it", "p", "wins"]
    return _markdown(head, rows) if rows else ""


def _bare(figure: Figure) -> str:
    """The figure without its p value, which has a column of its own."""
    return replace(figure, p=None).text()


def figure_table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Every figure with its 95% interval, p value and number of samples; figures of few samples
    have the single runs."""
    if not figures:
        return ""
    has_p = any(figure.get("p") is not None for figure in figures.values())
    head = ["figure", "value", "95% interval", *(["p"] if has_p else []), "n", "unit"]
    rows = [
        [
            f"`{name}`", _value(f), _interval(f), *([_p(f)] if has_p else []),
            str(f.get("n") or "–"), f["unit"],
        ]
        for name, f in figures.items()
    ]  # fmt: skip
    few = any(figure.get("raw") for figure in figures.values())
    return _markdown(head, rows) + (_FEW if few else "")


def _value(figure: Mapping[str, Any]) -> str:
    if raw := figure.get("raw"):
        return f"runs: {', '.join(f'{sample:.2f}' for sample in raw)}"
    return f"{figure['value']:.2f}"


def _p(figure: Mapping[str, Any]) -> str:
    return "–" if figure.get("p") is None else f"{figure['p']:.3f}"


def _interval(figure: Mapping[str, Any]) -> str:
    if figure.get("n", 0) is None or figure["low"] is None:
        return "–"
    return f"{figure['low']:.2f} to {figure['high']:.2f}"


def places(document: str) -> dict[str, str]:
    """The tables of a document, by the path of their record."""
    return {match["record"]: match["table"] for match in _PLACE.finditer(document)}


def fill(document: str, record: str, table: str) -> str:
    """The document with the table of one record replaced.

    Raises LabError when the document has no marks for it.
    """
    if record not in places(document):
        raise LabError(f"the document has no line <!-- table of {record} -->")

    def place(match: re.Match[str]) -> str:
        if match["record"] != record:
            return match[0]
        return f"{match['start']}{table}{match['end']}"

    return _PLACE.sub(place, document)


def read_report(path: Path) -> dict[str, Any]:
    """Read the record of a measurement.

    Raises LabError when the file is not such a record.
    """
    try:
        report: dict[str, Any] = json.loads(path.read_text())
        report["figures"], report["runs"]
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f"{path} is no record of a measurement: {error!r}") from error
    return report


def _cell(runs: Runs, policy: str, concurrency: int) -> str:
    cell = [
        run for run in runs
        if run["policy"] == policy and run["load"]["concurrency"] == concurrency
    ]  # fmt: skip
    if not cell:
        return "–"
    tokens = statistics.median(run["tokens_per_s"] for run in cell)
    latency = statistics.median(run["latency_s"]["mean"] for run in cell)
    return f"{tokens:.0f} ({latency:.2f} s, n = {len(cell)})"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("--:" for _ in head[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
