"""Drafts that the target makes itself: what followed the newest tokens in the request's text or in
earlier answers. They are fused with the drafts of drafters.

They cost the target a look into two indexes and some rows. Confidences are the length of the suffix
that is repeated, and the count of an n-gram; the acceptance rates that they lead to are learned in
each round, also from drafts that were not worth their rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import mul
from typing import NamedTuple

from edgecosine.balance.cost_model import smooth
from edgecosine.balance.plan import CoBatchedRequests, worthwhile_nodes
from edgecosine.balance.request_state import RequestState
from edgecosine.balance.statistics import Statistics
from edgecosine.fusion.calibration import Calibration
from edgecosine.fusion.ngram_table import LONGEST as LONGEST_NGRAM
from edgecosine.fusion.suffix_index import SuffixIndex
from edgecosine.protocol.wire.tree import EMPTY_TREE, ROOT, TokenTree

SOURCES = TEXT, NGRAMS = "@text", "@ngrams"
"""Used in place of drafters' node ids, which they cannot equal; bit i of a node's proposers is
SOURCES[i]."""
SUFFIXES = (4, 2)
"""Lengths of the suffixes that are looked up, in tokens."""
MOST_TOKENS = 8
"""Longest draft; a repetition has no more tokens than the suffix that was repeated."""
LEAST_CHANCE = 0.05
"""Probability of a draft's path below which it ends."""
MOST_READ = 4096
"""Newest tokens of a prompt that are looked at."""

_SPEED_SHARE = 0.1
"""Weight of a round in the speed of the own drafts."""
TRUST_PRIOR, FADE = 2.0, 0.9
"""Prior number of accepted first tokens in the trust of a new text, and the weight of earlier
tokens at each new one, since texts differ in how often they repeat themselves."""


class _Guess(NamedTuple):
    """A token that may follow, by one of SOURCES."""

    token: int
    source: str
    confidence: float
    calibrated: float
    """Probability by the source's confidences."""
    chance: float
    """Probability in this text."""


class LocalDraft:
    """Drafts for one request."""

    def __init__(self, request: RequestState, statistics: Statistics) -> None:
        policy = request.policy
        self._request, self._statistics = request, statistics
        self._index = SuffixIndex(SUFFIXES) if policy.repeats_text else None
        self._ngrams = statistics.ngrams(policy) if policy.uses_ngrams else None
        self._first: int | None = None
        """Position in the text of the first token that was read."""
        self._prefix_len = 0
        self._firsts: list[_Guess] = []
        """What each source has for the first token of the last draft."""
        self._guesses: list[_Guess] = []
        """The last draft, with tokens that are not worth their rows."""
        self._expected, self._accepted = 0.0, 0.0
        """First tokens of the last repetitions that were expected to be accepted, and that were."""
        self._tree, self._promised, self._relative_speed = EMPTY_TREE, 0.0, 1.0
        """The last draft, its expected accepted tokens, and the speed of rounds with it over plain
        ones."""

    def draft(self, tokens: Sequence[int], room: int) -> TokenTree:
        """The part of a draft after `tokens` that is worth its rows, of at most `room` tokens;
        empty where not even a certain token would be, or the policy has no such drafts."""
        self._firsts, self._guesses = [], []
        self._prefix_len = len(tokens)
        self._tree, self._promised, self._relative_speed = EMPTY_TREE, 0.0, 1.0
        others, pass_s = self._others()
        is_worth_a_look = worthwhile_nodes([1.0], pass_s, 0.0, others)
        if room > 0 and self._request.policy.is_adaptive and is_worth_a_look:
            self._read(tokens)
            self._guesses = [*self._chain(tokens, min(MOST_TOKENS, room))]
            self._choose(self._guesses, others, pass_s)
        self._request.own_draft = self._tree
        return self._tree

    def note_verified(self) -> None:
        """Let plans of other requests expect the last draft in the next pass; the planner counts a
        fused one."""
        if len(self._tree):
            self._statistics.set_size(self._request, 1 + len(self._tree), 1.0 + self._promised)

    def observe(self, committed: Sequence[int]) -> None:
        """Learn from what was committed after the last draft, if there was one."""
        truth = committed[self._prefix_len :]
        if not truth:
            return
        self._note_speed(truth)
        for guess in self._firsts:
            is_accepted = self._judge(guess, truth[0])
            if guess.source == TEXT:
                self._expected = FADE * self._expected + guess.calibrated
                self._accepted = FADE * self._accepted + is_accepted
        followed = zip(self._guesses, self._guesses[1:], truth, truth[1:], strict=False)
        for before, guess, token_before, token in followed:
            if before.token != token_before:
                break
            self._judge(guess, token)
        self._firsts, self._guesses = [], []

    def _note_speed(self, truth: Sequence[int]) -> None:
        """Learn the gain of the last draft, also if drafts of drafters were verified with it."""
        trial, num_accepted = self._request.trial, 0
        for token, right in zip(self._tree.tokens, truth, strict=False):
            if token != right:
                break
            num_accepted += 1
        speedup = (1 + num_accepted) * self._relative_speed
        trial.local_speedup = smooth(trial.local_speedup, speedup, _SPEED_SHARE)

    def learn(self, tokens: Sequence[int], start: int) -> None:
        """Learn the n-grams of a text from `start` on, for later drafts of the same policy."""
        if self._ngrams is not None:
            self._ngrams.learn(tokens, start)

    def _read(self, tokens: Sequence[int]) -> None:
        if self._index is None:
            return
        if self._first is None:
            self._first = max(0, len(tokens) - MOST_READ)
        self._index.extend(tokens[self._first + len(self._index.tokens) :])

    def _chain(self, tokens: Sequence[int], most: int) -> Iterator[_Guess]:
        """The more probable guess at each token, while it is worth a look."""
        text, (at, matched) = (
            (self._index.tokens, self._index.longest_match()) if self._index else ([], (0, 0))
        )
        newest, path, most_repeated = [*tokens[-LONGEST_NGRAM:]], 1.0, matched
        for number in range(most):
            found = list[_Guess]()
            if matched and number < most_repeated and at < len(text):
                found.append(self._guess(text[at], TEXT, _confidence(matched)))
            if self._ngrams is not None and (entry := self._ngrams.next_token(newest)):
                found.append(self._guess(entry[0], NGRAMS, entry[1]))
            if not number:
                self._firsts = found
            best = max(found, key=lambda guess: guess.chance, default=None)
            if best is None:
                return
            path *= best.chance
            if path < LEAST_CHANCE:
                return
            yield best
            newest = [*newest, best.token][-LONGEST_NGRAM:]
            is_repeated = matched and at < len(text) and text[at] == best.token
            at, matched = at + 1, matched + 1 if is_repeated else 0

    def _guess(self, token: int, source: str, confidence: float) -> _Guess:
        calibrated = confidence
        if self._request.policy.is_calibrated:
            calibrated = self._calibration(source).probability(confidence)
        trust = 1.0
        if source == TEXT:
            trust = (self._accepted + TRUST_PRIOR) / (self._expected + TRUST_PRIOR)
        chance = min(1.0, trust * calibrated)
        return _Guess(token, source, confidence, calibrated, chance)

    def _others(self) -> tuple[CoBatchedRequests, list[float]]:
        """The other requests of the pass, and its times by the rows of this one."""
        statistics = self._statistics
        others = statistics.co_batched(self._request)
        if not others.requests:
            # Rounds with such a draft cost the event loop hardly more than plain ones.
            others = CoBatchedRequests(bookkeeping_s=statistics.plain_bookkeeping_s)
        return others, statistics.pass_times(others)

    def _choose(
        self, guesses: Sequence[_Guess], others: CoBatchedRequests, pass_s: Sequence[float]
    ) -> None:
        """Take the guesses that are worth their rows."""
        paths = [*accumulate([guess.chance for guess in guesses], mul)]
        most = worthwhile_nodes(paths, pass_s, 0.0, others)
        self._promised = sum(paths[:most])
        chosen = guesses[:most]
        self._tree = TokenTree(
            tokens=tuple([guess.token for guess in chosen]),
            parents=tuple(range(ROOT, most - 1)),
            confidences=tuple([guess.chance for guess in chosen]),
            proposers=tuple([1 << SOURCES.index(guess.source) for guess in chosen]),
        )
        plain_s = pass_s[1] + others.bookkeeping_s
        round_s = pass_s[1 + most] + others.bookkeeping_s
        if round_s > 0.0:
            self._relative_speed = plain_s / round_s

    def _judge(self, guess: _Guess, token: int) -> bool:
        is_accepted = guess.token == token
        self._calibration(guess.source).observe([(guess.confidence, is_accepted)])
        return is_accepted

    def _calibration(self, source: str) -> Calibration:
        state = self._statistics.drafter(source)
        return state.calibration(is_greedy=self._request.is_greedy)


def _confidence(matched: int) -> float:
    """Acceptance expected behind a repeated suffix, in a bin of its own for each length."""
    return min(0.95, 0.25 + 0.1 * matched)
