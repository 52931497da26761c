"""Plans of a request's next round: immutable, with drafters, draft length and deadline.

For a chain of gamma draft tokens with acceptance rate a, a round commits
    E = 1 + a + a^2 + ... + a^gamma = (1 - a^(gamma + 1)) / (1 - a)
tokens (Leviathan et al., 2023, eq. 1) and takes the slowest drafter's answer plus one forward pass
of 1 + nodes rows. The plan is the candidate with the most tokens per second; gamma = 0, plain
decoding, is always a candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

MAX_GAMMA = 12
MAX_NODES = 48
PROBE_GAMMA = 4
"""Draft length of a round that probes drafters with little evidence."""
TRIAL_GAMMA = 3
"""Longest draft of a lone request that may be slower by it, and of a drafter whose steps were never
timed: what such a round costs at most is about a plain round."""
DEADLINE_FACTOR = 2.5
"""Longest wait for a draft, over its expected time."""
DEADLINE_FLOOR_S = 0.02
LONGEST_DEADLINE_S = 1.0
"""Longest wait for any draft; each late draft raises the expected time of the next one."""


class Candidate(msgspec.Struct, frozen=True):
    """A drafter as the planner sees it."""

    node_id: str
    rate: float
    """Expected acceptance rate for this request."""
    evidence: float
    """Tokens of this request that the rate rests on."""
    token_s: float
    overhead_s: float
    is_measured: bool
    longest: int = MAX_GAMMA
    """Tokens of a draft, at most."""
    contention: float = 0.0
    """Seconds by which its steps delay passes, for each second."""


class CoBatchedRequests(msgspec.Struct, frozen=True):
    """The other requests in a pass: their number, their rows, and the tokens expected of them."""

    requests: int = 0
    rows: int = 0
    tokens: float = 0.0
    bookkeeping_s: float = 0.0
    """Time between two passes in which the target plans, fuses and commits for all of them."""


ALONE = CoBatchedRequests()


class Plan(msgspec.Struct, frozen=True):
    """Which drafters are asked in the next round, for how many tokens, and why."""

    drafters: tuple[str, ...] = ()
    gamma: int = 0
    width: int = 1
    interval: int = 0
    """Tokens between two fusions of the round; 0: once, when drafts are complete."""
    shares: Mapping[str, bytes] = {}
    """Of a plan ahead: a drafter's weights of the acceptance endpoints, if it has some."""
    is_probe: bool = False
    """Whether its drafts only yield evidence, so that no round waits for them."""
    within_s: float = 0.0
    """Time in which drafters answer with what they have; 0: as long as `gamma` steps take."""
    draft_s: float = 0.0
    """Expected wait for the drafts."""
    deadline_s: float = 0.0
    speed: float = 0.0
    """Tokens per second of rounds by it, some of whose drafts are made ahead."""
    reason: str = ""


def expected_tokens(rate: float, gamma: float) -> float:
    """Committed tokens of a round with a chain of `gamma`; a fractional gamma is a mean length."""
    rate = min(rate, 0.9999)
    return float((1.0 - rate ** (gamma + 1)) / (1.0 - rate))


def choose_plan(
    candidates: Sequence[Candidate],
    pass_s: Sequence[float],
    room: int,
    co_batched: CoBatchedRequests = ALONE,
    overlap: float = 0.0,
) -> Plan:
    """The plan with the most committed tokens per second of the target's time.

    pass_s[rows] is the expected time of a pass in which the request has so many rows (index 0
    unused), `room` the number of tokens still to generate. Co-batched requests commit their tokens
    in the same time, so a row that slows them down must be worth it to all. In a share `overlap` of
    the rounds drafts are made while the target verifies, and cost only the time by which they
    outlast the pass.
    """
    if not candidates or room < 2:
        why = "no drafters" if not candidates else "one token left"
        return Plan(reason=f"K=0: t_v {_ms(pass_s[1])}, {why}")
    plain_speed = speed_of(1.0, 0.0, pass_s[1], co_batched)
    best: tuple[Candidate, int] | None = None
    best_speed = -1.0
    for candidate in contenders(candidates):
        tokens, path = 1.0, 1.0
        for gamma in range(1, min(candidate.longest, room - 1, len(pass_s) - 2) + 1):
            path *= candidate.rate
            tokens += path
            round_s = pass_s[gamma + 1]
            wait_s = _wait_s(candidate, gamma, round_s, co_batched, overlap)
            speed = speed_of(tokens, wait_s, round_s, co_batched)
            if speed > best_speed:
                best_speed, best = speed, (candidate, gamma)
    if best is None or best_speed <= plain_speed:
        return Plan(speed=plain_speed, reason=_why_plain(best, best_speed, plain_speed, pass_s))
    return _plan_of_one(*best, best_speed, pass_s)


def _wait_s(
    candidate: Candidate,
    gamma: int,
    round_s: float,
    co_batched: CoBatchedRequests,
    overlap: float,
) -> float:
    """Expected wait for a draft. One that shares the target's processor is not made ahead, and
    delays the passes of all requests."""
    steps_s = gamma * candidate.token_s
    draft_s = candidate.overhead_s + steps_s
    if not candidate.contention:
        return expected_wait_s(draft_s, round_s, overlap)
    return max(draft_s, candidate.contention * steps_s * (1 + co_batched.requests))


def _why_plain(
    nearest: tuple[Candidate, int] | None, speed: float, plain_speed: float, pass_s: Sequence[float]
) -> str:
    """The figures of the best drafter, and those of plain decoding."""
    if nearest is None:
        return f"K=0: t_v {_ms(pass_s[1])}, no room for drafts"
    candidate, gamma = nearest
    return (
        f"K=0: no drafter pays; {candidate.node_id} gives {speed:.0f} tokens/s at "
        f"{_figures(candidate, gamma, pass_s)}; plain {plain_speed:.0f} at t_v {_ms(pass_s[1])}"
    )


def _figures(candidate: Candidate, gamma: int, pass_s: Sequence[float]) -> str:
    return (
        f"K={gamma}: rtt+wait {_ms(candidate.overhead_s)}, t_d {_ms(candidate.token_s)}, "
        f"t_v {_ms(pass_s[gamma + 1])}, acceptance {candidate.rate:.2f}"
    )


def _plan_of_one(candidate: Candidate, gamma: int, speed: float, pass_s: Sequence[float]) -> Plan:
    draft_s = candidate.overhead_s + gamma * candidate.token_s
    return Plan(
        drafters=(candidate.node_id,),
        gamma=gamma,
        speed=speed,
        draft_s=draft_s,
        deadline_s=deadline(draft_s, gamma * pass_s[1], is_measured=candidate.is_measured),
        reason=_figures(candidate, gamma, pass_s),
    )


def worth_asking(
    candidates: Sequence[Candidate],
    pass_s: Sequence[float],
    co_batched: CoBatchedRequests,
    overlap: float,
) -> Sequence[Candidate]:
    """All but those that share the target's processor and would not be chosen if they were right as
    often as the best one."""
    others = [each for each in candidates if not each.contention]
    if len(others) in (0, len(candidates)):
        return candidates
    best_rate = max(each.rate for each in candidates)

    def may_lead(each: Candidate) -> bool:
        rivals = [*others, replace(each, rate=best_rate)]
        plan = choose_plan(rivals, pass_s, MAX_GAMMA, co_batched, overlap)
        return each.node_id in plan.drafters

    return [each for each in candidates if not each.contention or may_lead(each)]


def ask_around(plan: Plan, candidates: Sequence[Candidate], most: int) -> Plan:
    """The plan with the best other drafters added, up to `most` in all, since its lead may not fit
    the text any more; the next rounds show which drafter does. Not those that are expected too
    late, and not those that share the target's processor."""
    in_time = [
        each
        for each in candidates
        if not each.contention and each.overhead_s + plan.gamma * each.token_s <= plan.deadline_s
    ]
    others = sorted(in_time, key=lambda candidate: -candidate.rate)
    names = dict.fromkeys((*plan.drafters, *(candidate.node_id for candidate in others)))
    return replace(plan, drafters=tuple(names)[:most])


def contenders(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that may be the best at some draft length, in their order.

    A candidate is dropped if another one is at least as good in rate, overhead, time per token and
    contention; of two equal ones the first stays.
    """
    kept: list[tuple[int, Candidate]] = []
    ranked = sorted(enumerate(candidates), key=lambda numbered: -numbered[1].rate)
    for place, candidate in ranked:
        overhead_s, token_s = candidate.overhead_s, candidate.token_s
        for _, other in kept:
            is_as_quick = other.overhead_s <= overhead_s and other.token_s <= token_s
            if is_as_quick and other.contention <= candidate.contention:
                break
        else:
            kept.append((place, candidate))
    return [candidate for _, candidate in sorted(kept, key=lambda numbered: numbered[0])]


def speed_of(tokens: float, draft_s: float, pass_s: float, co_batched: CoBatchedRequests) -> float:
    """Tokens per second of a round; 0 before the first measurement.

    While one request waits for its drafts the passes of the others run, so its wait costs the
    target's time only in its share.
    """
    total_s = draft_s / (1 + co_batched.requests) + pass_s + co_batched.bookkeeping_s
    return (co_batched.tokens + tokens) / total_s if total_s > 0.0 else 0.0


def worthwhile_nodes(
    path_probabilities: Sequence[float],
    pass_s: Sequence[float],
    waited_s: float,
    co_batched: CoBatchedRequests = ALONE,
) -> int:
    """Number of a tree's nodes, in falling order of path probability, that are worth their rows.

    With the first n nodes a request that is alone commits 1 + sum(path_probabilities[:n]) tokens in
    waited_s + pass_s[n + 1] seconds; the n with the most tokens per second is best.
    """
    best, best_speed, tokens = 0, 0.0, 1.0
    for num_nodes in range(min(len(path_probabilities), len(pass_s) - 2) + 1):
        if num_nodes:
            tokens += path_probabilities[num_nodes - 1]
        if pass_s[num_nodes + 1] <= 0.0:
            return len(path_probabilities)
        speed = speed_of(tokens, waited_s, pass_s[num_nodes + 1], co_batched)
        if speed > best_speed:
            best, best_speed = num_nodes, speed
    return best


def best_speed(
    path_probabilities: Sequence[float],
    pass_s: Sequence[float],
    co_batched: CoBatchedRequests = ALONE,
) -> float:
    """Tokens per second of a tree that is complete, cut to its worthwhile nodes."""
    nodes = worthwhile_nodes(path_probabilities, pass_s, 0.0, co_batched)
    return speed_of(1.0 + sum(path_probabilities[:nodes]), 0.0, pass_s[nodes + 1], co_batched)


def expected_wait_s(draft_s: float, pass_s: float, overlap: float) -> float:
    """Expected wait for drafts, a share `overlap` of which is made while a pass runs."""
    return (1 - overlap) * draft_s + overlap * max(0.0, draft_s - pass_s)


def probe_plan(candidates: Sequence[Candidate], room: int) -> Plan:
    """A plan that asks all candidates for a short draft, as evidence for this request."""
    return Plan(
        drafters=tuple(c.node_id for c in candidates),
        gamma=max(1, min(PROBE_GAMMA, room - 1)),
        draft_s=LONGEST_DEADLINE_S,
        deadline_s=LONGEST_DEADLINE_S,
        reason=f"probing {len(candidates)} drafters",
    )


def deadline(expected_s: float, worth_s: float, *, is_measured: bool) -> float:
    """Longest wait for a draft in seconds: a multiple of its expected time, and at most the time
    that plain decoding takes for the same tokens (`worth_s`)."""
    patience_s = DEADLINE_FACTOR * expected_s if is_measured else LONGEST_DEADLINE_S
    return max(DEADLINE_FLOOR_S, min(patience_s, worth_s or LONGEST_DEADLINE_S, LONGEST_DEADLINE_S))


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
