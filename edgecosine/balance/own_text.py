"""Drafts of a lone request from its own text, for rounds in which no drafter is asked, or promises
less.

They cost the target a look into an index and some rows. Their confidence is the length of the
repeated suffix, whose acceptance rate is learned in rounds without drafters, also from drafts that
were not worth their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from edgecosine.balance.plan import CoBatchedRequests, speed_of, worthwhile_nodes
from edgecosine.balance.request_state import RequestState
from edgecosine.balance.statistics import Statistics
from edgecosine.fusion.drafter_tree import DrafterTree
from edgecosine.fusion.suffix_index import SuffixIndex
from edgecosine.protocol.wire.tree import EMPTY_TREE, TokenTree, chain

OWN_TEXT = "@text"
"""In the place of a drafter's node id, of which it is none."""
SUFFIXES = (4, 2)
"""Tokens of the suffixes that are looked up."""
MOST_TOKENS = 8
"""Longest draft, which has no more tokens than the suffix that was repeated."""
PROMISING = 1.0
"""Tokens expected to be accepted for which drafters are not asked."""
MOST_READ = 4096
"""Newest tokens of a prompt that are looked at."""

TRUST_PRIOR, FADE = 2.0, 0.9
"""Accepted first tokens that a new text's trust rests on, and the weight of those before each new
one: texts differ in how often they repeat themselves."""


class OwnText:
    """Drafts for one request."""

    def __init__(self, request: RequestState, statistics: Statistics) -> None:
        self._request, self._statistics = request, statistics
        self._index = SuffixIndex(SUFFIXES)
        self._first: int | None = None
        """Position in the text of the first token that was read."""
        self._draft: DrafterTree | None = None
        self._expected, self._accepted = 0.0, 0.0
        """First tokens of the last drafts that were expected to be accepted, and that were."""
        self.is_promising = False
        """Whether the last draft is expected to be worth more than drafters were."""

    def draft(self, tokens: Sequence[int], room: int) -> TokenTree:
        """The part of a draft after `tokens` that is worth its rows, of at most `room` tokens;
        empty where other requests run, or the policy has no such drafts."""
        self._draft, self.is_promising = None, False
        is_alone = self._statistics.budget(self._request) is not None
        if not (is_alone and self._request.policy.repeats_text):
            return EMPTY_TREE
        if self._first is None:
            self._first = max(0, len(tokens) - MOST_READ)
        self._index.extend(tokens[self._first + len(self._index.tokens) :])
        start, matched = self._index.longest_match()
        repeated = tuple(self._index.tokens[start : start + min(MOST_TOKENS, room, matched)])
        if not (matched and repeated):
            return EMPTY_TREE
        confidences = tuple([_confidence(matched + at) for at in range(len(repeated))])
        self._draft = DrafterTree(OWN_TEXT, len(tokens), chain(repeated, confidences))
        return self._worthwhile(self._draft.tree)

    def observe(self, committed: Sequence[int]) -> None:
        """Learn from what was committed after the last draft."""
        draft = self._draft
        if draft is None:
            return
        [first] = self._probabilities(draft.tree.confidences[:1])
        self._expected = FADE * self._expected + first
        next_token = committed[draft.prefix_len :][:1]
        self._accepted = FADE * self._accepted + draft.compare(next_token).covered
        self._statistics.acceptance.observe_truth(self._request, [draft], committed)

    def _worthwhile(self, tree: TokenTree) -> TokenTree:
        statistics = self._statistics
        # Rounds with such a draft cost the event loop hardly more than plain ones.
        alone = CoBatchedRequests(bookkeeping_s=statistics.plain_bookkeeping_s)
        trust = (self._accepted + TRUST_PRIOR) / (self._expected + TRUST_PRIOR)
        chances = [min(1.0, trust * each) for each in self._probabilities(tree.confidences)]
        paths, pass_s = [*accumulate(chances, mul)], statistics.pass_times(alone)
        most = worthwhile_nodes(paths, pass_s, 0.0, alone)
        if not most:
            return EMPTY_TREE
        promised = sum(paths[:most])
        speed = speed_of(1.0 + promised, 0.0, pass_s[1 + most], alone)
        self.is_promising = promised >= PROMISING and speed > self._request.pace.per_s
        return tree.only(range(most))

    def _probabilities(self, confidences: Sequence[float]) -> Sequence[float]:
        if not self._request.policy.is_calibrated:
            return confidences
        state = self._statistics.drafter(OWN_TEXT)
        return state.calibration(is_greedy=self._request.is_greedy).probabilities(confidences)


def _confidence(matched: int) -> float:
    """Acceptance expected behind a repeated suffix, in a bin of its own for each length."""
    return min(0.95, 0.25 + 0.1 * matched)
