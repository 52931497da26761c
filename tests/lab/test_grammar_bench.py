"""The benchmark of response formats counts identical answers, and saves what it measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgecosine import zoo
from edgecosine.lab.bench.run_grammar import run_grammar_bench
from edgecosine.lab.figures import Figure


def test_answers_with_a_format_are_identical_under_random_drafts() -> None:
    saved: list[Mapping[str, Figure]] = []

    def keep(figures: Mapping[str, Figure], runs: Sequence[Any], **_: Any) -> None:
        assert all(speed > 0 for run in runs for speed in run["tokens_per_s"])
        saved.append(dict(figures))

    figures = run_grammar_bench(zoo.TARGET, 1, lambda _: None, keep)
    assert figures["grammar_identical_share"].value == 1.0
    assert figures["grammar_overhead"].value > 0
    assert saved[-1] == figures
