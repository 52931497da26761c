"""Figures of the comparison with peers, computed from its runs.

Ratios are computed within a turn, in which all servers answer the same prompts in immediate
succession. Figures without runs, and those of failed peers, are left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Final

from edgecosine.lab.bench.cells import ALONE, ASSISTED, OURS
from edgecosine.lab.figures import Figure, interval

LLAMACPP, LLAMACPP_DRAFTED = "llamacpp", "llamacpp-with-draft"
TRANSFORMERS = "hf-generate"
HOSTILE, HOSTILE_ALONE = "hostile", "hostile-target-alone"
SINGLE, EIGHT = "single", "eight"

Run = Mapping[str, Any]

_RATIOS: Final = (
    ("over_llamacpp", SINGLE, OURS, LLAMACPP),
    ("over_llamacpp_with_draft", SINGLE, OURS, LLAMACPP_DRAFTED),
    ("over_hf", SINGLE, OURS, TRANSFORMERS),
    ("over_hf_assisted", SINGLE, OURS, ASSISTED),
    ("over_target_alone", SINGLE, OURS, ALONE),
    ("target_alone_over_llamacpp", SINGLE, ALONE, LLAMACPP),
    ("llamacpp_with_draft_over_plain", SINGLE, LLAMACPP_DRAFTED, LLAMACPP),
    ("hostile_over_target_alone", SINGLE, HOSTILE, HOSTILE_ALONE),
    ("eight_over_llamacpp_eight", EIGHT, OURS, LLAMACPP),
    ("eight_over_target_alone", EIGHT, OURS, ALONE),
)
_DECODE: Final = ("over_llamacpp", "over_llamacpp_with_draft", "over_hf_assisted")
"""Ratios that are also reported for the time after the first token, which excludes the prompt."""
_SAME: Final = (
    ("identical_share", OURS, ALONE),
    ("hostile_identical_share", HOSTILE, HOSTILE_ALONE),
    ("llamacpp_with_draft_identical_share", LLAMACPP_DRAFTED, LLAMACPP),
    ("llamacpp_same_text_share", LLAMACPP, ALONE),
    ("hf_same_text_share", TRANSFORMERS, ALONE),
)
_RATES: Final = (ALONE, OURS, LLAMACPP, LLAMACPP_DRAFTED, TRANSFORMERS, ASSISTED)


def peer_figures(runs: Sequence[Run], failed: Container[str] = ()) -> dict[str, Figure]:
    """Figures by name, without those that lack runs and without servers that `failed`."""
    runs = [run for run in runs if run["server"] not in failed]
    figures: dict[str, Figure] = {}
    for name, cell, over, under in _RATIOS:
        if values := _ratios(runs, cell, over, under, "tokens_per_s"):
            figures[name] = interval(values)
        if name in _DECODE and (values := _ratios(runs, cell, over, under, "decode_tokens_per_s")):
            figures[f"{name}_decode"] = interval(values)
    for name, one, other in _SAME:
        if shares := _same(runs, one, other):
            figures[name] = interval(shares, statistics.fmean)
    for cell in (SINGLE, EIGHT):
        for server in _RATES:
            rates = [run["tokens_per_s"] for run in runs if _is(run, cell, server)]
            if rates:
                figures[f"{cell}_tokens_per_s_{server}"] = interval(rates, unit="tokens/s")
    return figures


def _ratios(runs: Sequence[Run], cell: str, over: str, under: str, field: str) -> list[float]:
    ours, theirs = (
        _by_turn(runs, cell, server, lambda run: run[field]) for server in (over, under)
    )
    both = sorted(ours.keys() & theirs.keys())
    return [ours[turn] / theirs[turn] for turn in both if ours[turn] and theirs[turn]]


def _same(runs: Sequence[Run], one: str, other: str) -> list[float]:
    """The share of equal texts in each turn of both servers, in any cell."""
    shares = []
    for cell in (SINGLE, EIGHT):
        ones, others = (_by_turn(runs, cell, s, lambda run: run["texts"]) for s in (one, other))
        for turn in sorted(ones.keys() & others.keys()):
            pairs = [*zip(ones[turn], others[turn], strict=True)]
            if pairs:
                shares.append(statistics.fmean(a == b for a, b in pairs))
    return shares


def _by_turn(
    runs: Sequence[Run], cell: str, server: str, value: Callable[[Run], Any]
) -> dict[int, Any]:
    return {run["turn"]: value(run) for run in runs if _is(run, cell, server)}


def _is(run: Run, cell: str, server: str) -> bool:
    return bool(run["cell"] == cell and run["server"] == server)
