"""Reads a member's message, whose rows become ballots when their nodes are walked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgecosine.fusion.committee.ballot import Ballot, Floats, Ids
from edgecosine.protocol.wire.messages import Judgement


class JudgedRows:
    """The rows of a message, the root's first; `also` are the tokens that the request named in
    addition to the lists.

    A member's rows may be longer than the vocabulary, as models of one family have outputs for
    tokens that do not exist: these have no part in the mixture.

    Raises ValueError where the sizes of the message do not fit each other or the request.
    """

    def __init__(
        self, judgement: Judgement, also: Sequence[int], vocabulary: int, *, is_dense: bool = False
    ) -> None:
        self._vocabulary, self._is_dense = vocabulary, is_dense
        self._lse = _floats(judgement.lse)
        size = self._lse.size
        self._ids = np.frombuffer(judgement.ids, dtype="<u4").astype(np.int64).reshape(size, -1)
        self._logits = _floats(judgement.logits).reshape(size, -1)
        self._also = _floats(judgement.also).reshape(size, -1)
        self._named: Ids = np.array([*also], dtype=np.int64)
        num_named, num_sent = self._named.size, self._also.shape[1]
        if num_sent < vocabulary if is_dense else num_sent != num_named:
            raise ValueError(
                f"{num_sent} logits for {vocabulary if is_dense else num_named} tokens"
            )
        self._score_bounds = _bounds(judgement.score_bounds, size)
        self._logit_bounds = _bounds(judgement.logit_bounds, size)

    def __len__(self) -> int:
        return self._lse.size

    def ballot(self, row: int) -> Ballot:
        """The ballot of one row.

        Raises ValueError where the values are not those of a row of logits.
        """
        lse = float(self._lse[row])
        if self._is_dense:
            return Ballot.dense(lse, self._also[row, : self._vocabulary])
        exists = self._ids[row] < self._vocabulary
        return Ballot.of(
            lse,
            np.concatenate([self._ids[row, exists], self._named]),
            np.concatenate([self._logits[row, exists], self._also[row]]),
            vocabulary=self._vocabulary,
            score_bound=float(self._score_bounds[row]),
            logit_bound=float(self._logit_bounds[row]),
        )


def _floats(packed: bytes) -> Floats:
    return np.frombuffer(packed, dtype="<f4").astype(np.float64)


def _bounds(packed: bytes, size: int) -> Floats:
    """One bound for each row, infinite where the message has none."""
    bounds = _floats(packed) if packed else np.full(size, math.inf)
    if bounds.size != size:
        raise ValueError(f"{bounds.size} bounds for {size} rows")
    return bounds
