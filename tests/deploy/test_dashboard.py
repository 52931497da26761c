"""The Grafana dashboard names metrics that a target shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgecosine.metrics.families import target_metrics
from edgecosine.metrics.measurements import Measurements
from edgecosine.metrics.prometheus import render
from tests.metrics.test_metrics import STATE

DASHBOARD = Path(__file__).parents[2] / "deploy/grafana/edgecosine.json"
_NAME = re.compile(r"(?:vllm:|edgecosine_)[a-z0-9_]+")


def expressions(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        yield from (str(part[key]) for key in ("expr", "query") if key in part)
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from expressions(each)


def test_each_metric_of_the_dashboard_is_shown_by_a_target() -> None:
    measured = Measurements()
    measured.count_round(4, 2, {"d1": 4}, {"d1": 2})
    measured.count_times(plan=0.1, draft=0.1, verify=0.1)
    text = render(target_metrics(measured, {**STATE, **NAMED}, "1.0"))[0].decode()
    shown = {re.split(r"[{ ]", line)[0] for line in text.splitlines() if line[0] != "#"}
    named = {
        name
        for expression in expressions(json.loads(DASHBOARD.read_text()))
        for name in _NAME.findall(expression)
    }
    assert len(named) > 20
    assert named <= shown


def test_panels_have_titles_and_places_that_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    cells = [
        (x, y)
        for panel in panels
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert all(x < 24 for x, _ in cells)
    assert all(panel["title"] for panel in panels)


NAMED = {"drafters": {"d1": {**STATE["drafters"]["d1"], "token_ms": 3.0}}}
