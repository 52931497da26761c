"""What the planner and its statistics keep about one active request."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgecosine.balance.policy import POLICIES, Policy
from edgecosine.balance.speculation_switch import Speed
from edgecosine.balance.trials import Trial
from edgecosine.fusion.acceptance_rates import RequestRates
from edgecosine.protocol.wire.tree import EMPTY_TREE, TokenTree


@dataclass(slots=True, eq=False, weakref_slot=True)
class RequestState:
    """One active request. `rows` and `tokens` are the size of its last tree with the root, and the
    tokens expected of it; other requests' plans count on the same in their next pass."""

    policy: Policy = POLICIES["edgecosine"]
    is_greedy: bool = True
    num_prompt: int = 0
    number: int = 0
    """Of the requests that this node has opened; random routing is seeded with it."""
    nlls: dict[str, float] = field(default_factory=dict)
    """NLL of the text before the first round, by the drafters that have read all of it."""
    best_by_nll: str | None = None
    """The drafter with the lowest NLL among those whose self-reports are trusted."""
    first_length: int = 0
    """Tokens of the text before the first round."""
    rates: RequestRates = field(default_factory=RequestRates)
    num_probes: int = 0
    rounds_since_probe: int = 0
    rows: int = 1
    tokens: float = 1.0
    overlap: float = 0.5
    """Share of rounds whose drafts were complete when the verification result arrived."""
    text_length: int = 0
    """Tokens of the text when the weight of its prompt was last halved."""
    accepted: float | None = None
    """Accepted tokens per round, smoothed."""
    pace: Speed = field(default_factory=Speed)
    """Tokens per second of its rounds, whatever time these took."""
    own_draft: TokenTree = EMPTY_TREE
    """The target's own draft for the next round."""
    trial: Trial = field(default_factory=Trial)
