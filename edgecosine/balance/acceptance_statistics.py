"""Learns the acceptance rates of drafters from committed tokens."""

from __future__ import annotations

from collections.abc import Sequence

from edgecosine.balance.drafter_table import DrafterTable
from edgecosine.balance.request_state import RequestState
from edgecosine.fusion.acceptance_rates import PromptScoreGain, predicted_rates
from edgecosine.fusion.drafter_tree import Comparison, DrafterTree
from edgecosine.protocol.wire.prompt_score import MAX_SCORED_TOKENS

TEXT_INTERVAL = 48
"""Tokens of an answer that halve the prompt's weight as evidence: the subject may have changed."""


class AcceptanceStatistics:
    """Compares drafts with committed tokens."""

    def __init__(self, drafters: DrafterTable) -> None:
        self._drafters = drafters
        self._prompt_gain = {True: PromptScoreGain(), False: PromptScoreGain()}
        """By whether the request is greedy."""

    def observe_text(self, request: RequestState, tokens: Sequence[int]) -> None:
        """Let the prompt say less about a request as its text grows."""
        if request.text_length:
            if len(tokens) - request.text_length < TEXT_INTERVAL:
                return
            request.rates.predicted_weight /= 2
        request.text_length = len(tokens)

    def observe_truth(
        self, request: RequestState, drafts: Sequence[DrafterTree], committed: Sequence[int]
    ) -> None:
        """Learn from drafts whose tokens the target has accepted or rejected."""
        for draft in drafts:
            if (own := draft.own(committed)) is not None:
                self._observe_draft(request, own, own.compare(committed[own.prefix_len :]))
        self._predict(request)

    def most_confident(self, request: RequestState, drafts: Sequence[DrafterTree]) -> DrafterTree:
        """The draft with the most confident first token, calibrated if the policy says so."""
        return max(drafts, key=lambda draft: self._first_confidence(request, draft))

    def _first_confidence(self, request: RequestState, draft: DrafterTree) -> float:
        first = draft.tree.confidences[0]
        if not request.policy.is_calibrated:
            return first
        state = self._drafters.get(draft.node_id)
        return state.calibration(is_greedy=request.is_greedy).probability(first)

    def _observe_draft(
        self, request: RequestState, draft: DrafterTree, comparison: Comparison
    ) -> None:
        node_id, hits, misses = draft.node_id, comparison.hits, comparison.misses
        state = self._drafters.get(node_id)
        request.rates.observe(node_id, hits, misses)
        state.record.rate.observe(hits, misses)
        if node_id == request.best_by_nll:
            self._prompt_gain[request.is_greedy].rate.observe(hits, misses)
        reported = request.rates.reported_rate(node_id)
        if reported is not None:
            state.record.self_report.observe(reported, hits, misses)
        _observe_score(request, draft)
        calibration = state.calibration(is_greedy=request.is_greedy)
        calibration.observe(comparison.judged)

    def _predict(self, request: RequestState) -> None:
        """Predict rates from the NLLs of drafters whose self-reports are trusted."""
        trusted = {
            node_id: nll
            for node_id, nll in request.nlls.items()
            if self._drafters.get(node_id).record.self_report.is_trusted
        }
        request.best_by_nll = min(trusted, key=lambda node_id: trusted[node_id], default=None)
        best_rate = self._prompt_gain[request.is_greedy].expected
        request.rates.predicted = predicted_rates(trusted, best_rate)


def _observe_score(request: RequestState, draft: DrafterTree) -> None:
    """Learn from a drafter's score of tokens that it has read for this draft."""
    agreement = draft.score.top1_matches
    num_answer = max(0, draft.prefix_len - request.num_prompt)
    of_answer = agreement[max(0, len(agreement) - num_answer) :]
    if of_answer and request.policy.uses_self_reports:
        hits = sum(of_answer)
        request.rates.observe_report(draft.node_id, hits, len(of_answer) - hits)
    is_whole = len(agreement) == min(MAX_SCORED_TOKENS, request.first_length - 1)
    is_of_prompt = is_whole and draft.prefix_len == request.first_length
    if agreement and is_of_prompt and request.policy.scores_prompts:
        request.nlls[draft.node_id] = draft.score.nll
