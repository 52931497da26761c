"""Members of a committee as arrays: rows of logits, and what they would send."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgecosine.fusion.committee.ballot import Ballot
from edgecosine.fusion.committee.draw import Drawn, Unproven, decide
from edgecosine.fusion.committee.draw_rule import DrawRule


def log_sum_exp(row: np.ndarray) -> float:
    """Rounded to float32, as it is sent."""
    highest = row.max()
    return float(np.float32(highest + np.log(np.exp(row - highest).sum())))


def ballot(row: np.ndarray, rule: DrawRule, k: int) -> Ballot:
    """The `k` best tokens of a row, in the lists that `rule` needs."""
    lse, vocabulary = log_sum_exp(row), row.size
    ids, score_bound, logit_bound = [], math.inf, math.inf
    if rule.needs_scores:
        scores = (row - lse) / rule.temperature + rule.noise(np.arange(vocabulary))
        best = np.argsort(-scores, kind="stable")[:k]
        ids += best.tolist()
        score_bound = float(scores[best[-1]]) if k < vocabulary else -math.inf
    if rule.needs_logits:
        best = np.argsort(-row, kind="stable")[:k]
        ids += best.tolist()
        logit_bound = float(row[best[-1]]) if k < vocabulary else -math.inf
    listed = np.array(ids, dtype=np.int64)
    return Ballot.of(
        lse,
        listed,
        row[listed],
        vocabulary=vocabulary,
        score_bound=score_bound,
        logit_bound=logit_bound,
    )


@dataclass
class Resolution:
    """A draw, and what it took."""

    drawn: Drawn
    num_reveals: int = 0
    num_longer: int = 0


def resolve(rows: np.ndarray, weights: Sequence[float], rule: DrawRule, k: int) -> Resolution:
    """Decide from lists of `k` tokens; ask for more as long as the draw is not proven."""
    vocabulary = rows.shape[1]
    k = min(k, vocabulary)
    ballots = [ballot(row, rule, k) for row in rows]
    reveals = longer = 0
    while isinstance(outcome := decide(weights, ballots, rule, vocabulary), Unproven):
        if outcome.ids:
            reveals += 1
            ids = np.array(outcome.ids)
            new = [
                each.with_logits(ids, row[ids], vocabulary=vocabulary)
                for each, row in zip(ballots, rows, strict=True)
            ]
            assert any(a.ids.size > b.ids.size for a, b in zip(new, ballots, strict=True))
            ballots = new
        else:
            assert k < vocabulary, "whole rows prove every draw"
            longer += 1
            k = min(2 * k, vocabulary)
            ballots = [
                each.extended(ballot(row, rule, k), vocabulary=vocabulary)
                for each, row in zip(ballots, rows, strict=True)
            ]
    return Resolution(outcome, reveals, longer)


def whole(rows: np.ndarray, weights: Sequence[float], rule: DrawRule) -> Drawn:
    """The draw from whole rows."""
    ballots = [Ballot.dense(log_sum_exp(row), row) for row in rows]
    outcome = decide(weights, ballots, rule, rows.shape[1])
    assert isinstance(outcome, Drawn)
    return outcome
