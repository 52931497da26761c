"""Chooses the drafter that is probed during a verification.

The draft of a probe is judged by the verification result like any other, but no round waits for
it. It costs the target's processor a few messages.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgecosine.balance.plan import Candidate

ENOUGH_EVIDENCE = 6.0
"""Judged tokens after which a drafter is known to a request."""
FIRST_PROBES = 1
"""Probes per drafter in successive rounds of a new request. Drafters of one machine slow each other
down, and the target's processor reads their messages."""
PROMISING_EVERY, PROMISING_RARER = 2, 2
"""Plain rounds between two probes of the most promising drafter at first, and probes after which
the interval is one round longer."""
PROBE_EVERY = 6
"""Rounds between two probes of drafters that were probed before: subjects change."""
PROMISING_RATE = 0.5
"""Acceptance rate from which a drafter that plans leave out for its slowness is probed more often,
since its measured speed may be out of date."""
RESTING_PACE = 8
"""Factor on the interval of probes while no request speculates."""
SHARED_PACE = 8
"""Factor on the interval of a machine's probes while it drafts for the plan, since a drafter needs
the time of several drafts to read the text."""
OTHERS_TURN = 4
"""One of this many probes does not go to the most promising drafter."""


def pace_of(num_requests: int, *, is_resting: bool) -> int:
    """Factor on the interval of probes, which grows with the number of active requests;
    `is_resting` if none of them speculates."""
    return max(1, num_requests) * (RESTING_PACE if is_resting else 1)


def is_due(rounds_since: int, pace: int) -> bool:
    """Whether any drafter may be probed."""
    return rounds_since >= PROBE_EVERY * pace


def may_probe(rounds_since: int, pace: int) -> bool:
    """Whether `choose_probe` may return a drafter; a lone request also probes earlier."""
    return pace <= 1 or is_due(rounds_since, pace)


def choose_probe(
    others: Sequence[Candidate],
    num_probes: int,
    rounds_since: int,
    pace: int,
    *,
    is_plain: bool,
) -> Candidate | None:
    """One of the drafters that the plan leaves out, or None.

    The request has made `num_probes` probes, the last one `rounds_since` rounds ago; `is_plain` if
    the plan has no drafters.
    """
    is_promising_due = rounds_since >= PROMISING_EVERY + num_probes // PROMISING_RARER
    if is_plain and is_promising_due and num_probes % OTHERS_TURN != OTHERS_TURN - 1:
        best = most_promising(others)
        if best is not None:
            return best
    if is_due(rounds_since, pace):
        pool = others
    else:
        pool = still_new(others, num_probes) if pace <= 1 else ()
    return pool[num_probes % len(pool)] if pool else None


def most_promising(others: Sequence[Candidate]) -> Candidate | None:
    """The candidate with the highest rate, if it would pay with a higher speed."""
    best = max(others, key=lambda candidate: candidate.rate, default=None)
    return best if best is not None and best.rate >= PROMISING_RATE else None


def still_new(others: Sequence[Candidate], num_probes: int) -> Sequence[Candidate]:
    """Candidates with little evidence in this request, during its first probes."""
    if num_probes >= FIRST_PROBES * len(others):
        return ()
    return [candidate for candidate in others if candidate.evidence < ENOUGH_EVIDENCE]
