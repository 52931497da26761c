"""Reads a member's message as ballots, one for each node."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgecosine.fusion.committee.ballot import Ballot, Floats
from edgecosine.protocol.wire.messages import Judgement


def read_judgement(
    judgement: Judgement, also: Sequence[int], vocabulary: int, *, is_dense: bool = False
) -> list[Ballot]:
    """The ballots of the nodes in order, the root's first; `also` are the tokens that the request
    named beside the lists.

    Raises ValueError where the values are not those of rows of logits.
    """
    lse = _floats(judgement.lse)
    size = lse.size
    ids = np.frombuffer(judgement.ids, dtype="<u4").astype(np.int64).reshape(size, -1)
    logits = _floats(judgement.logits).reshape(size, -1)
    more = _floats(judgement.also).reshape(size, -1)
    score_bounds = _floats(judgement.score_bounds) if judgement.score_bounds else None
    logit_bounds = _floats(judgement.logit_bounds) if judgement.logit_bounds else None
    named = np.arange(vocabulary) if is_dense else np.array([*also], dtype=np.int64)
    if more.shape[1] != named.size:
        raise ValueError(f"{more.shape[1]} logits for {named.size} tokens")
    if is_dense:
        return [Ballot.dense(float(lse[0]), more[0])]
    return [
        Ballot.of(
            float(lse[node]),
            np.concatenate([ids[node], named]),
            np.concatenate([logits[node], more[node]]),
            vocabulary=vocabulary,
            score_bound=math.inf if score_bounds is None else float(score_bounds[node]),
            logit_bound=math.inf if logit_bounds is None else float(logit_bounds[node]),
        )
        for node in range(size)
    ]


def _floats(packed: bytes) -> Floats:
    return np.frombuffer(packed, dtype="<f4").astype(np.float64)
