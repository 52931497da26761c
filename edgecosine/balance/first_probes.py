"""Chooses the drafters that are asked while the target reads the text of a new request.

Their drafts are probes, which are judged before the first plan is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from edgecosine.balance.plan import PROBE_GAMMA, Candidate
from edgecosine.balance.probes import OTHERS_TURN
from edgecosine.balance.request_state import RequestState
from edgecosine.balance.statistics import Statistics

FIRST_ASKED = 8
"""Maximum number of drafters asked during prefill: each message takes time of the event loop."""
FEWEST_ASKED, ASKED_TOGETHER = 2, 64
"""Drafters asked for one of many requests, and for all requests together, since the evidence of one
request serves the others."""
PROMISING = 5
"""Those among them that are chosen by their expected rate; the others have the least evidence."""
FIRST_ASKED_PER_HOST = 2
"""Drafters of one machine that are asked in one of `OTHERS_TURN` requests, since they slow each
other down; other requests ask one. More are asked if they are expected to end within the
prefill."""


def first_asked(
    request: RequestState, candidates: Sequence[Candidate], statistics: Statistics
) -> list[Candidate]:
    """The most promising drafters, then those with the least evidence. Drafters that were recently
    late come last, since otherwise they would be asked again and again if few may be asked."""
    by_rate = sorted(candidates, key=lambda c: (statistics.drafter(c.node_id).rest, -c.rate))
    by_evidence = sorted(
        candidates, key=lambda c: statistics.drafter(c.node_id).record.rate.evidence
    )
    per_host = 1 if request.number % OTHERS_TURN else FIRST_ASKED_PER_HOST
    asked = list[Candidate]()
    for ranked, most, hosted in ((by_rate, PROMISING, 1), (by_evidence, FIRST_ASKED, per_host)):
        _extend(asked, ranked, most, hosted, statistics, statistics.pass_s(request.num_prompt))
    return asked[: max(FEWEST_ASKED, ASKED_TOGETHER // max(1, statistics.num_active))]


def _extend(
    asked: list[Candidate],
    ranked: Sequence[Candidate],
    most: int,
    per_host: int,
    statistics: Statistics,
    prefill_s: float,
) -> None:
    """Add the first of `ranked`, up to `most` in all and `per_host` of a known machine, or more if
    they have the time."""
    hosts = Counter(statistics.drafter(c.node_id).host for c in asked)
    for candidate in ranked:
        host = statistics.drafter(candidate.node_id).host
        if candidate in asked:
            continue
        if host and hosts[host] >= per_host:
            beside = [c for c in asked if statistics.drafter(c.node_id).host == host]
            if not _have_time([candidate, *beside], ranked, prefill_s):
                continue
        if len(asked) == most:
            return
        asked.append(candidate)
        hosts[host] += 1


def _have_time(sharing: Sequence[Candidate], others: Sequence[Candidate], prefill_s: float) -> bool:
    """Whether drafters of one machine, one after another, are expected to end within the prefill.

    A drafter that was never measured is expected to be as slow as the slowest of the others.
    """
    known_s = [_probe_s(each) for each in others if each.is_measured]
    if not known_s:
        return False
    slowest_s = max(known_s)
    return sum(_probe_s(c) if c.is_measured else slowest_s for c in sharing) <= prefill_s


def _probe_s(candidate: Candidate) -> float:
    return candidate.overhead_s + PROBE_GAMMA * candidate.token_s
