"""One round of a session while it runs, and when it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence

import msgspec

from edgecosine.balance.round import Round
from edgecosine.engine.base import VerificationResult
from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.node.target.asked_draft import AskedDraft
from edgecosine.protocol.wire.tree import TokenTree


class BegunRound(msgspec.Struct, frozen=True):
    """A round whose tree is submitted. Moments and times are in seconds.

    began_s   end of the former round
    busy_s    time outside of the wait for drafts until the submission
    plan_s    time of the plan, a part of it
    waited_s  for drafts
    """

    tree: TokenTree
    verification: asyncio.Future[VerificationResult]
    drafters: Sequence[str]
    """Node ids of the drafts of the tree, in the order of its proposers."""
    began_s: float
    busy_s: float
    submitted_s: float
    is_quiet: bool
    """Whether no drafter works for the request meanwhile."""
    current: Round | None = None
    """The plan and its drafts; None of a round without a plan."""
    plan_s: float = 0.0
    waited_s: float = 0.0
    ahead: Sequence[AskedDraft] = ()
    patience_s: float = 0.0
    """Seconds for which drafts ahead are awaited after the pass."""


class EndedRound(msgspec.Struct, frozen=True):
    """A verified round, and the drafts of probes that ended with it."""

    begun: BegunRound
    result: VerificationResult
    probed: Sequence[DrafterTree]
    ended_s: float
    pass_s: float
    missed: Collection[str] = ()
    """Node ids of the drafters whose drafts ahead do not continue the committed tokens."""


def guessed_by(path: Sequence[int], tree: TokenTree, proposers: Sequence[str]) -> Iterator[str]:
    """The drafters of each node of an accepted path, and of the target's own token behind it."""
    for node in path:
        yield "+".join(
            name for bit, name in enumerate(proposers) if tree.proposers[node] >> bit & 1
        )
    yield ""
