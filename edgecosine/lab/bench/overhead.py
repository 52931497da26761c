"""The overhead of a round beyond its computing time: arithmetic on `RoundTimes` as plain data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Times = Mapping[str, Any]


def overheads_s(rounds: Sequence[Times]) -> list[float]:
    """Overhead of each round except the prefill and the last, in seconds: its duration without the
    target's forward pass and the computing time of the drafters that it waited for.

    A round lasts until the next one starts. If there is no network between the nodes, the overhead
    consists of messages, threads, decisions, and the output of text.
    """
    return [
        _overhead_s(times, following["started_s"])
        for times, following in itertools.pairwise(rounds[1:])
    ]


def _overhead_s(times: Times, ended_s: float) -> float:
    submitted_s, verified_s = times["submitted_s"], times["verified_s"]
    drafts = times["drafts"]
    waited_for = [draft for draft in drafts if draft["asked_s"] < submitted_s]
    beside = [draft for draft in drafts if draft["asked_s"] >= submitted_s]
    computing_s = (
        _covered_s(waited_for, times["started_s"], submitted_s)
        + times["pass_s"]
        + _covered_s(beside, verified_s, ended_s)
    )
    return float(ended_s - times["started_s"] - computing_s)


def _covered_s(drafts: Sequence[Times], start_s: float, end_s: float) -> float:
    """Seconds of a span in which at least one drafter was computing."""
    covered_s, reached_s = 0.0, start_s
    for begun_s, done_s in sorted(_computing(drafts)):
        last_s = min(done_s, end_s)
        covered_s += max(0.0, last_s - max(begun_s, reached_s))
        reached_s = max(reached_s, last_s)
    return covered_s


def _computing(drafts: Sequence[Times]) -> Iterator[tuple[float, float]]:
    """Start and end of each drafter's computing. The rest of a reply's time is split evenly before
    and after it."""
    for draft in drafts:
        sent_s, ended_s = draft["asked_s"], draft["ended_s"]
        transfer_s = max(0.0, ended_s - sent_s - draft["compute_s"]) / 2
        yield sent_s + transfer_s, ended_s - transfer_s
