"""Whom to try beside a verification: a draft that nobody waits for, judged by the verdict like any
other. It costs the request little: the target's processor reads the messages."""

from __future__ import annotations

from collections.abc import Sequence

from edgecosine.balance.plan import Candidate

ENOUGH_EVIDENCE = 6.0
"""Judged tokens after which a drafter counts as tried for a request."""
FIRST_TRIALS = 1
"""Trials per drafter that follow each other while a request is new. Drafters of one machine slow
each other down, and the target's processor reads their messages."""
HOPEFUL_EVERY, HOPEFUL_RARER = 2, 2
"""Plain rounds between two trials of the hopeful one at first, and trials after which it is one
round more."""
TRIAL_EVERY = 6
"""Rounds between two trials of drafters that were tried before: subjects change."""
HOPEFUL = 0.5
"""Acceptance rate from which a drafter that plans leave out for its slowness is tried more often:
what is believed of its speed may be out of date."""
RESTING_PACE = 8
"""How much rarer trials are while no request speculates, for nobody is to choose yet."""
OTHERS_TURN = 4
"""One in so many trials is not the hopeful one's."""


def pace_of(num_requests: int, *, is_resting: bool) -> int:
    """How rare trials are: the rarer, the more requests are at work. `is_resting` says that none of
    them speculates."""
    return max(1, num_requests) * (RESTING_PACE if is_resting else 1)


def is_due(rounds_since: int, pace: int) -> bool:
    """Whether it is time that anybody is tried."""
    return rounds_since >= TRIAL_EVERY * pace


def may_try(rounds_since: int, pace: int) -> bool:
    """Whether `whom_to_try` may name anybody; between what is due only for a lone request."""
    return pace <= 1 or is_due(rounds_since, pace)


def whom_to_try(
    others: Sequence[Candidate],
    num_trials: int,
    rounds_since: int,
    pace: int,
    *,
    is_plain: bool,
) -> Candidate | None:
    """One of the drafters that the plan leaves out, or None.

    `num_trials` were made for this request, the last one `rounds_since` rounds ago; `is_plain` says
    that the plan asks nobody.
    """
    is_hopeful_due = rounds_since >= HOPEFUL_EVERY + num_trials // HOPEFUL_RARER
    if is_plain and is_hopeful_due and num_trials % OTHERS_TURN != OTHERS_TURN - 1:
        best = most_hopeful(others)
        if best is not None:
            return best
    if is_due(rounds_since, pace):
        pool = others
    else:
        pool = still_new(others, num_trials) if pace <= 1 else ()
    return pool[num_trials % len(pool)] if pool else None


def most_hopeful(others: Sequence[Candidate]) -> Candidate | None:
    """The best of them, if it would pay were it quicker than is believed."""
    best = max(others, key=lambda candidate: candidate.rate, default=None)
    return best if best is not None and best.rate >= HOPEFUL else None


def still_new(others: Sequence[Candidate], num_trials: int) -> Sequence[Candidate]:
    """Those of whom this request knows little, while its first trials last."""
    if num_trials >= FIRST_TRIALS * len(others):
        return ()
    return [candidate for candidate in others if candidate.evidence < ENOUGH_EVIDENCE]
