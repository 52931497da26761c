"""Counts a committee's work on one answer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from edgecosine.engine.base import CommitteeRound
from edgecosine.protocol.api.result import CommitteePart, CommitteeUse


@dataclass(slots=True)
class CommitteeMetrics:
    """Sums over the rounds of one answer; times in seconds."""

    parts: list[CommitteePart] = field(default_factory=list)
    rounds: Counter[str] = field(default_factory=Counter)
    """Rounds in which a member was the slowest."""
    seconds: dict[str, float] = field(default_factory=dict)
    compute_s: dict[str, float] = field(default_factory=dict)
    """Of these rounds, by the slowest member's name."""
    use: CommitteeUse = field(default_factory=CommitteeUse)

    def count(self, part: CommitteeRound, from_token: int) -> None:
        """Count a verification whose first token is number `from_token` of the answer."""
        members, name, use = tuple(part.seconds), part.slowest, self.use
        if not self.parts or self.parts[-1].members != members:
            self.parts.append(CommitteePart(members, from_token))
        self.rounds[name] += 1
        self.seconds[name] = self.seconds.get(name, 0.0) + part.seconds[name]
        self.compute_s[name] = self.compute_s.get(name, 0.0) + part.compute_s
        self.use = CommitteeUse(
            is_exact=use.is_exact and part.is_exact,
            round_s=use.round_s + part.elapsed_s,
            slowest_s=use.slowest_s + part.seconds[name],
            num_rows=use.num_rows + part.num_rows,
            num_bytes=use.num_bytes + part.num_bytes,
            num_drawn=use.num_drawn + part.num_drawn,
            num_asked_back=use.num_asked_back + part.num_asked_back,
            num_dense=use.num_dense + part.num_dense,
            lost=use.lost + part.lost,
            differing=use.differing + part.differing,
        )

    def result(self) -> CommitteeUse | None:
        """The counts as an immutable value; None where no committee worked."""
        if not self.parts:
            return None
        [(name, count)] = self.rounds.most_common(1)
        total_ms, compute_ms = (
            1e3 * times[name] / count for times in (self.seconds, self.compute_s)
        )
        rest_ms = total_ms - compute_ms
        why = f"verify {total_ms:.1f} ms: {name} {compute_ms:.1f} + {rest_ms:.1f} to and fro"
        drawn = max(1, self.use.num_drawn)
        return replace(
            self.use,
            parts=tuple(self.parts),
            why=why,
            lost=self.use.lost / drawn,
            differing=self.use.differing / drawn,
        )
