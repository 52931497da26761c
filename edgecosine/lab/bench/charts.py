"""The data of the plots, computed from a benchmark's record.

Repeated runs are summarised by medians. Ratios are taken within one repetition, so that a drift of
the machine's speed does not change them.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from edgecosine.lab.bench.cells import ALONE
from edgecosine.lab.bench.figures import Runs, tokens_per_s
from edgecosine.lab.network.conditions import NetworkConditions

_ABLATION = "-without-"
_ABLATIONS = "ablations"
"""The start of the names of cells that measure only ablations."""
_OUTSIDE = "hf-"

Activity = Literal["draft", "network", "waiting", "verify"]


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves by policy: (x, y) in the order of x."""

    title: str
    curves: dict[str, list[tuple[float, float]]]
    labels: tuple[str, ...] = ()
    """Labels of the points, the same for all curves; empty if they have none."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Accepted share of each drafter's tokens by domain; None if it proposed nothing."""

    title: str
    drafters: tuple[str, ...]
    domains: tuple[str, ...]
    shares: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True)
class Span:
    """One activity of a lane of a timeline, in seconds since the session started."""

    lane: str
    activity: Activity
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """One request. The first lane is the target's; `committed_s` are the ends of its rounds."""

    title: str
    lanes: tuple[str, ...]
    spans: tuple[Span, ...]
    committed_s: tuple[float, ...]


def compared(runs: Runs) -> list[Mapping[str, Any]]:
    """The comparable runs: all but those of ablations, of hostile drafters and of one host."""
    return [
        run for run in runs
        if run.get("site", "network") == "network"
        and _ABLATION not in run["policy"]
        and not run.get("cell", "").startswith(_ABLATIONS)
    ]  # fmt: skip


def frontiers(runs: Runs) -> list[Chart]:
    """Tokens per second over median inter-token latency in milliseconds, a point for each
    concurrency; one chart for each network and temperature with more than one concurrency."""
    charts = []
    closed = [run for run in _closed(compared(runs)) if not _policy(run).startswith(_OUTSIDE)]
    for (conditions, temperature), group in _grouped(closed, _conditions, _temperature).items():
        concurrencies = sorted({_concurrency(run) for run in group})
        curves = {
            policy: [
                (1e3 * _median(cell, _inter_token_s), _median(cell, tokens_per_s))
                for _, cell in sorted(_grouped(of_policy, _concurrency).items())
            ]
            for policy, of_policy in _grouped(group, _policy).items()
        }
        if len(concurrencies) > 1:
            labels = tuple(map(str, concurrencies))
            charts.append(Chart(f"{conditions}, temperature {temperature:g}", curves, labels))
    return charts


def rtt_sweeps(runs: Runs) -> list[Chart]:
    """Throughput over that of the target alone, by round-trip time in milliseconds; one chart for
    each concurrency, temperature and kind of network with more than one delay."""
    charts = []
    groups = _grouped(_closed(compared(runs)), _concurrency, _temperature, _still)
    for (concurrency, temperature, still), group in groups.items():
        delays = {_delay_ms(run) for run in group}
        curves: dict[str, list[tuple[float, float]]] = {}
        for policy, of_policy in _grouped(group, _policy).items():
            points = []
            for delay_ms, cell in sorted(_grouped(of_policy, _delay_ms).items()):
                ratios = _over_baseline(cell, group)
                if ratios:
                    points.append((2 * delay_ms, statistics.median(ratios)))
            if points and policy != ALONE:
                curves[policy] = points
        if len(delays) > 1 and curves:
            title = f"{concurrency} at a time, temperature {temperature:g}{still}"
            charts.append(Chart(title, curves))
    return charts


def acceptance(runs: Runs) -> list[Matrix]:
    """Each drafter's accepted share by domain, over all runs of a policy that drafted."""
    matrices = []
    for policy, group in _grouped(compared(runs), _policy).items():
        counts: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        for run in group:
            for node_id, domains in run["drafters"].items():
                for domain, share in domains.items():
                    cell = counts[node_id.rpartition("-")[0] or node_id, domain]
                    cell[0] += share["accepted"]
                    cell[1] += share["proposed"]
        drafters, domains = (tuple(sorted({key[i] for key in counts})) for i in (0, 1))
        rows = tuple(tuple(_share(*counts[name, d]) for d in domains) for name in drafters)
        if drafters:
            matrices.append(Matrix(policy, drafters, domains, rows))
    return matrices


def timelines(runs: Runs, max_rounds: int = 16) -> list[Timeline]:
    """The first rounds of each policy's first recorded request."""
    found: dict[str, Timeline] = {}
    for run in runs:
        for request in run.get("requests", ()):
            if request["rounds"] and run["policy"] not in found:
                title = f"{run['policy']}, {request['domain']}"
                found[run["policy"]] = timeline(title, request["rounds"][:max_rounds])
    return list(found.values())


def timeline(title: str, rounds: Sequence[Mapping[str, Any]]) -> Timeline:
    """The timeline of a request from its rounds, each a `RoundTimes` as plain data.

    The time of a reply beyond the drafter's own time is split evenly before and after it.
    """
    spans = []
    for times in rounds:
        passed_s = times["verified_s"] - times["pass_s"]
        spans.append(Span("target", "waiting", times["submitted_s"], passed_s))
        spans.append(Span("target", "verify", passed_s, times["verified_s"]))
        for draft in times["drafts"]:
            lane, sent_s, ended_s = draft["drafter"], draft["asked_s"], draft["ended_s"]
            transfer_s = max(0.0, ended_s - sent_s - draft["compute_s"]) / 2
            spans.append(Span(lane, "network", sent_s, sent_s + transfer_s))
            spans.append(Span(lane, "draft", sent_s + transfer_s, ended_s - transfer_s))
            spans.append(Span(lane, "network", ended_s - transfer_s, ended_s))
    lanes = dict.fromkeys(["target", *sorted({span.lane for span in spans} - {"target"})])
    real = tuple(span for span in spans if span.end_s > span.start_s)
    return Timeline(title, tuple(lanes), real, tuple(times["verified_s"] for times in rounds))


def _grouped(runs: Iterable[Mapping[str, Any]], *keys: Any) -> dict[Any, list[Mapping[str, Any]]]:
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for run in runs:
        values = tuple(key(run) for key in keys)
        groups.setdefault(values if len(keys) > 1 else values[0], []).append(run)
    return groups


def _over_baseline(cell: Runs, group: Runs) -> list[float]:
    """Throughput of each run over the target alone, in the same repetition and network."""
    alone = {(_delay_ms(r), r["repeat"]): r for r in group if _policy(r) == ALONE}
    pairs = [(run, alone.get((_delay_ms(run), run["repeat"]))) for run in cell]
    return [tokens_per_s(run) / tokens_per_s(base) for run, base in pairs if base is not None]


def _closed(runs: Runs) -> list[Mapping[str, Any]]:
    return [run for run in runs if run["load"]["kind"] == "closed"]


def _median(cell: Runs, of: Callable[[Mapping[str, Any]], float]) -> float:
    return statistics.median(of(run) for run in cell)


def _share(accepted: int, proposed: int) -> float | None:
    return accepted / proposed if proposed else None


def _policy(run: Mapping[str, Any]) -> str:
    return str(run["policy"])


def _concurrency(run: Mapping[str, Any]) -> int:
    return int(run["load"]["concurrency"])


def _temperature(run: Mapping[str, Any]) -> float:
    return float(run["temperature"])


def _inter_token_s(run: Mapping[str, Any]) -> float:
    return float(run["inter_token_s"]["p50"])


def _delay_ms(run: Mapping[str, Any]) -> float:
    return float(run["network"]["delay_ms"])


def _conditions(run: Mapping[str, Any]) -> str:
    conditions = msgspec.convert(run["network"], NetworkConditions)
    rtt = f"RTT {2 * conditions.delay_ms:g} ms"
    return f"{rtt}{_still(run)}"


def _still(run: Mapping[str, Any]) -> str:
    """The network conditions without the delay, as the end of a title."""
    conditions = msgspec.convert(run["network"], NetworkConditions)
    parts = str(conditions).split(", ")[1:]
    return "".join(f", {part}" for part in parts)
