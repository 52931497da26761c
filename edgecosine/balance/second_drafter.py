"""Adds further drafters to a plan, for the paths that the first one misses, or in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from edgecosine.balance.plan import (
    ALONE,
    MAX_GAMMA,
    Candidate,
    CoBatchedRequests,
    Plan,
    deadline,
    expected_tokens,
    expected_wait_s,
    speed_of,
)

MOST_IN_DOUBT = 8
"""Most requests beside each other that ask all drafters when in doubt: of more the messages would
fill the target's event loop."""
WORTH_JOINING = 1.05
"""Least speed-up of the request for which another drafter is added."""


def expected_of_two(lead: float, other: float, conditional: float, gamma: float) -> float:
    """Committed tokens of a round with two chains of `gamma` in one tree; a fractional gamma is a
    mean length. `conditional` is how often the other drafter is right where the lead is wrong.

    At the first token at which the chains differ the accepted path follows one of them, and only
    that drafter's later tokens count.
    """
    both = min(lead, max(0.0, other - (1 - lead) * conditional))
    tokens, together, left = 0.0, 1.0, gamma
    while left > 0:
        step, below = min(1.0, left), max(0.0, left - 1)
        parted = (lead - both) * expected_tokens(lead, below)
        parted += (1 - lead) * conditional * expected_tokens(other, below)
        tokens += together * step * (1.0 + parted)
        together, left = together * (1 - step + step * both), left - 1
    return tokens + together


def add_drafters(
    plan: Plan,
    candidates: Sequence[Candidate],
    conditional: Callable[[str, str], float],
    most: int,
    pass_s: Sequence[float],
    co_batched: CoBatchedRequests = ALONE,
    overlap: float = 0.0,
    contention: Callable[[int], float] = lambda _: 1.0,
    longest: int = MAX_GAMMA,
) -> Plan:
    """The plan with the drafters that add more than they cost, `most` in all.

    conditional(a, b) is the probability that b is right where a is wrong. The round waits for a
    drafter that joins, and its nodes are rows; it is chosen by its coverage beyond the first, not
    by its own rate. Drafters that are right together more often than the first alone are worth
    longer drafts, of at most `longest` tokens. contention(n) is how much longer n drafters take
    together than the slowest of them alone: a fresh draft then takes more time, and a draft beside
    a verification is shorter.
    """
    if not plan.drafters:
        return plan
    known = {candidate.node_id: candidate for candidate in candidates}
    lead = known[plan.drafters[0]]
    longer = min(2 * plan.gamma + 1, longest, MAX_GAMMA, len(pass_s) - 2)
    lengths = sorted({plan.gamma, max(plan.gamma, longer)})
    members, rate = [lead], lead.rate
    while len(members) < most:
        best, joined = plan, None
        names = {member.node_id for member in members}
        factor = contention(len(members) + 1)
        for other in candidates:
            if other.joining_s is None or other.node_id in names:
                continue
            # No drafter is right more often where another one is wrong than on average.
            covered = min(other.rate, conditional(lead.node_id, other.node_id))
            joint = rate + (1 - rate) * covered
            for gamma in lengths:
                rows = min(1 + gamma + len(members) * (gamma + 1) // 2, len(pass_s) - 1)
                tokens = (1 - overlap) * expected_of_two(rate, other.rate, covered, gamma)
                # A draft ahead has the time of a pass, in which contention shortens it. All begin
                # with the tree that is verified, whichever of them its tokens come from.
                tokens += overlap * expected_tokens(joint, gamma / factor)
                draft_s = factor * max(_answer_s(each, gamma) for each in (*members, other))
                wait_s = expected_wait_s(draft_s, pass_s[rows], overlap)
                speed = speed_of(tokens, wait_s, pass_s[rows], co_batched)
                if speed > max(best.speed, WORTH_JOINING * plan.speed):
                    best = replace(plan, speed=speed, draft_s=draft_s, gamma=gamma)
                    joined = other, joint
        if joined is None:
            break
        members.append(joined[0])
        rate, plan = joined[1], best
    if len(members) == 1:
        return plan
    return replace(
        plan,
        drafters=tuple(m.node_id for m in members),
        deadline_s=deadline(plan.draft_s, plan.gamma * pass_s[1], is_measured=lead.is_measured),
        reason=f"{plan.reason}, with {len(members) - 1} more for {rate - lead.rate:.2f}",
    )


def ask_around(plan: Plan, candidates: Sequence[Candidate], most: int) -> Plan:
    """The plan with the best other drafters, `most` in all: its lead may have become wrong for the
    text, and the next rounds tell which of them is right."""
    others = sorted(candidates, key=lambda candidate: -candidate.rate)
    names = dict.fromkeys((*plan.drafters, *(candidate.node_id for candidate in others)))
    return replace(plan, drafters=tuple(names)[:most])


def _answer_s(candidate: Candidate, gamma: int) -> float:
    return (candidate.joining_s or 0.0) + gamma * candidate.token_s
