"""How much to speculate: a frozen plan for one request's next round.

For a chain of gamma draft tokens with acceptance rate a, a round commits
    E = 1 + a + a^2 + ... + a^gamma = (1 - a^(gamma + 1)) / (1 - a)
tokens (Leviathan et al., 2023, eq. 1) and takes the slower drafter's answer plus one pass of
1 + nodes rows. The plan is the candidate with the most tokens per second; gamma = 0, the target
alone, is always one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

MAX_GAMMA = 12
MAX_NODES = 48
PROBE_GAMMA = 4
"""Draft length of a round that asks drafters of which too little is known."""
DEADLINE_FACTOR = 2.5
"""A draft may take so many times what is expected of it."""
DEADLINE_FLOOR_S = 0.02
WORTH_JOINING = 1.05
"""Another drafter is asked when it makes the request at least so much faster."""
LONGEST_DEADLINE_S = 1.0
"""Nobody is waited for longer: each late draft raises what is expected of the next one."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A drafter as a planner sees it."""

    node_id: str
    rate: float
    """Expected acceptance rate for this request."""
    evidence: float
    """Tokens that the expectation within this request rests on."""
    token_s: float
    overhead_s: float
    is_measured: bool


@dataclass(frozen=True, slots=True)
class CoBatchedRequests:
    """The other requests in a pass: how many, their rows, and the tokens they expect of it."""

    requests: int = 0
    rows: int = 0
    tokens: float = 0.0
    bookkeeping_s: float = 0.0
    """Time between two passes in which the target plans, fuses and commits for all of them."""


ALONE = CoBatchedRequests()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask of whom in the next round, and why."""

    drafters: tuple[str, ...] = ()
    gamma: int = 0
    width: int = 1
    interval: int = 0
    """Tokens between two fusions of the round; 0: once, when drafts are whole."""
    shares: Mapping[str, bytes] = field(default_factory=dict)
    """Of a question ahead to several: how much each drafter is to care about each outcome."""
    is_trial: bool = False
    """Nobody waits for its drafts; they are asked for the sake of learning."""
    draft_s: float = 0.0
    """Expected wait for the drafts."""
    deadline_s: float = 0.0
    speed: float = 0.0
    """Tokens per second of rounds by it, some of whose drafts are made ahead."""
    reason: str = ""


def expected_tokens(rate: float, gamma: float) -> float:
    """Committed tokens of a round with a chain of `gamma`, on average where that is a fraction."""
    rate = min(rate, 0.9999)
    return float((1.0 - rate ** (gamma + 1)) / (1.0 - rate))


def expected_of_two(lead: float, other: float, rescue: float, gamma: float) -> float:
    """Committed tokens of a round with two chains of `gamma` in one tree, on average where that is
    a fraction; `rescue` is how often the other one is right where the lead is wrong.

    Where the target leaves one chain for the other, only that one goes on: two help as long as both
    say the same, and at the first token at which they differ.
    """
    both = min(lead, max(0.0, other - (1 - lead) * rescue))
    tokens, together, left = 0.0, 1.0, gamma
    while left > 0:
        step, below = min(1.0, left), max(0.0, left - 1)
        parted = (lead - both) * expected_tokens(lead, below)
        parted += (1 - lead) * rescue * expected_tokens(other, below)
        tokens += together * step * (1.0 + parted)
        together, left = together * (1 - step + step * both), left - 1
    return tokens + together


def choose_plan(
    candidates: Sequence[Candidate],
    pass_s: Sequence[float],
    room: int,
    company: CoBatchedRequests = ALONE,
    hidden: float = 0.0,
) -> Plan:
    """The plan with the most committed tokens per second of the target's time.

    pass_s[rows] is the expected time of a pass in which the request has so many rows (index 0
    unused), `room` the tokens still wanted. Others in the pass commit their tokens in the same
    time, so that a row which slows all of them down must be worth it to all. In a share `hidden` of
    the rounds drafts are made while the target verifies, and are waited for only as far as they
    take longer than that.
    """
    if not candidates or room < 2:
        why = "no drafters" if not candidates else "one token left"
        return Plan(reason=f"K=0: t_v {_ms(pass_s[1])}, {why}")
    plain_speed = speed_of(1.0, 0.0, pass_s[1], company)
    best: tuple[Candidate, int] | None = None
    best_speed = -1.0
    for candidate in contenders(candidates):
        tokens, reach = 1.0, 1.0
        for gamma in range(1, min(MAX_GAMMA, room - 1, len(pass_s) - 2) + 1):
            reach *= candidate.rate
            tokens += reach
            draft_s = candidate.overhead_s + gamma * candidate.token_s
            round_s = pass_s[gamma + 1]
            speed = speed_of(tokens, _wait_s(draft_s, round_s, hidden), round_s, company)
            if speed > best_speed:
                best_speed, best = speed, (candidate, gamma)
    if best is None or best_speed <= plain_speed:
        return Plan(speed=plain_speed, reason=_why_nobody(best, best_speed, plain_speed, pass_s))
    return _asking(*best, best_speed, pass_s)


def _why_nobody(
    nearest: tuple[Candidate, int] | None, speed: float, plain_speed: float, pass_s: Sequence[float]
) -> str:
    """The figures of the drafter that came nearest to paying, and those of plain decoding."""
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


def _asking(candidate: Candidate, gamma: int, speed: float, pass_s: Sequence[float]) -> Plan:
    """The plan to ask one drafter for so many tokens."""
    draft_s = candidate.overhead_s + gamma * candidate.token_s
    return Plan(
        drafters=(candidate.node_id,),
        gamma=gamma,
        speed=speed,
        draft_s=draft_s,
        deadline_s=deadline(draft_s, gamma * pass_s[1], is_measured=candidate.is_measured),
        reason=_figures(candidate, gamma, pass_s),
    )


def contenders(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that may be the best at some draft length, in their order.

    Whoever is no better in rate, overhead and time per token than another one never is; of two that
    are alike the first one stays.
    """
    kept: list[tuple[int, Candidate]] = []
    ranked = sorted(enumerate(candidates), key=lambda numbered: -numbered[1].rate)
    for place, candidate in ranked:
        overhead_s, token_s = candidate.overhead_s, candidate.token_s
        for _, other in kept:
            if other.overhead_s <= overhead_s and other.token_s <= token_s:
                break
        else:
            kept.append((place, candidate))
    return [candidate for _, candidate in sorted(kept, key=lambda numbered: numbered[0])]


def speed_of(tokens: float, draft_s: float, pass_s: float, company: CoBatchedRequests) -> float:
    """Tokens per second of a round; 0 when nothing is measured yet.

    While one request waits for its drafts the others' passes run, so the wait costs the target's
    time only as far as nobody else fills it.
    """
    total_s = draft_s / (1 + company.requests) + pass_s + company.bookkeeping_s
    return (company.tokens + tokens) / total_s if total_s > 0.0 else 0.0


def worthwhile_nodes(
    reaches: Sequence[float],
    pass_s: Sequence[float],
    waited_s: float,
    company: CoBatchedRequests = ALONE,
) -> int:
    """How many of a tree's nodes, most probable first, are worth their rows.

    reaches[i] is the probability that node i is accepted, in falling order. With the first n nodes
    the request commits 1 + sum(reaches[:n]) tokens, in waited_s + pass_s[n + 1] seconds when it is
    alone; the n with the most tokens per second is best.
    """
    best, best_speed, tokens = 0, 0.0, 1.0
    for num_nodes in range(min(len(reaches), len(pass_s) - 2) + 1):
        if num_nodes:
            tokens += reaches[num_nodes - 1]
        if pass_s[num_nodes + 1] <= 0.0:
            return len(reaches)
        speed = speed_of(tokens, waited_s, pass_s[num_nodes + 1], company)
        if speed > best_speed:
            best, best_speed = num_nodes, speed
    return best


def add_rescuers(
    plan: Plan,
    candidates: Sequence[Candidate],
    rescue: Callable[[str, str], float],
    most: int,
    pass_s: Sequence[float],
    company: CoBatchedRequests = ALONE,
    hidden: float = 0.0,
    crowding: Callable[[int], float] = lambda _: 1.0,
) -> Plan:
    """The plan with the drafters that add more than they cost, `most` in all.

    rescue(a, b) is the probability that b is right where a is wrong. Whoever joins is waited for,
    and its nodes are rows; it is taken for its coverage beyond the first, not for its own rate.
    crowding(n) is how much longer n drafters take together than the slowest of them alone: while a
    fresh draft is waited for that takes time, and beside a verification it takes depth.
    """
    if not plan.drafters:
        return plan
    known = {candidate.node_id: candidate for candidate in candidates}
    lead = known[plan.drafters[0]]
    members, rate = [lead], lead.rate
    while len(members) < most:
        rows = min(1 + plan.gamma + len(members) * (plan.gamma + 1) // 2, len(pass_s) - 1)
        best, joined = plan, None
        names = {member.node_id for member in members}
        slowest_s = max(c.overhead_s + plan.gamma * c.token_s for c in members)
        for other in candidates:
            if not other.is_measured or other.node_id in names:
                continue
            # Nobody is right more often where another is wrong than anywhere.
            rescued = min(other.rate, rescue(lead.node_id, other.node_id))
            crowd = crowding(len(members) + 1)
            tokens = (1 - hidden) * expected_of_two(rate, other.rate, rescued, plan.gamma)
            # Who drafts ahead has the time of a pass, and gets as far as the company lets it.
            tokens += hidden * expected_of_two(rate, other.rate, rescued, plan.gamma / crowd)
            alone_s = max(slowest_s, other.overhead_s + plan.gamma * other.token_s)
            draft_s = alone_s * crowd
            wait_s = _wait_s(draft_s, pass_s[rows], hidden)
            speed = speed_of(tokens, wait_s, pass_s[rows], company)
            if speed > max(best.speed, WORTH_JOINING * plan.speed):
                best = replace(plan, speed=speed, draft_s=draft_s)
                joined = other, rate + (1 - rate) * rescued
        if joined is None:
            break
        members.append(joined[0])
        rate, plan = joined[1], best
    if len(members) == 1:
        return plan
    reason = f"{plan.reason}, with {len(members) - 1} more for {rate - lead.rate:.2f}"
    return replace(plan, drafters=tuple(m.node_id for m in members), reason=reason)


def _wait_s(draft_s: float, pass_s: float, hidden: float) -> float:
    """Expected wait for drafts, a share `hidden` of which is made while a pass runs."""
    return (1 - hidden) * draft_s + hidden * max(0.0, draft_s - pass_s)


def probe_plan(candidates: Sequence[Candidate], room: int) -> Plan:
    """Ask all of `candidates` a short draft, to learn who is good for this request."""
    return Plan(
        drafters=tuple(c.node_id for c in candidates),
        gamma=max(1, min(PROBE_GAMMA, room - 1)),
        draft_s=LONGEST_DEADLINE_S,
        deadline_s=LONGEST_DEADLINE_S,
        reason=f"trying {len(candidates)} drafters",
    )


def deadline(expected_s: float, worth_s: float, *, is_measured: bool) -> float:
    """Seconds that a draft is waited for: a few times what is expected, and never longer than the
    target would take for the same tokens by itself (`worth_s`)."""
    patience_s = DEADLINE_FACTOR * expected_s if is_measured else LONGEST_DEADLINE_S
    return max(DEADLINE_FLOOR_S, min(patience_s, worth_s or LONGEST_DEADLINE_S, LONGEST_DEADLINE_S))


def best_speed(
    reaches: Sequence[float], pass_s: Sequence[float], company: CoBatchedRequests = ALONE
) -> float:
    """Tokens per second of a tree that is there already, cut where it is best."""
    nodes = worthwhile_nodes(reaches, pass_s, 0.0, company)
    return speed_of(1.0 + sum(reaches[:nodes]), 0.0, pass_s[nodes + 1], company)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
