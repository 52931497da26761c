"""A member's message is read row by row, and refused where it cannot be one of rows of logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecosine.fusion.committee.judged_rows import JudgedRows
from edgecosine.protocol.wire.messages import Judgement

VOCABULARY = 8


def _packed(*values: float) -> bytes:
    return np.array(values, dtype="<f4").tobytes()


def _judgement(**changed: Any) -> Judgement:
    """Two rows with two listed tokens each, and the logit of one more."""
    parts = {
        "lse": _packed(0.0, 0.0),
        "ids": np.array([1, 2, 3, 4], dtype="<u4").tobytes(),
        "logits": _packed(-1.0, -2.0, -1.5, -3.0),
        "score_bounds": _packed(0.5, 0.25),
        "logit_bounds": b"",
        "also": _packed(-4.0, -5.0),
    }
    return Judgement(request_id="r", round=1, compute_us=0, **{**parts, **changed})


def test_rows_have_their_own_lists_and_bounds() -> None:
    rows = JudgedRows(_judgement(), [7], VOCABULARY)
    ballots = [rows.ballot(row) for row in range(len(rows))]
    assert [ballot.ids.tolist() for ballot in ballots] == [[1, 2, 7], [3, 4, 7]]
    assert [ballot.logits.tolist() for ballot in ballots] == [[-1, -2, -4], [-1.5, -3, -5]]
    assert [ballot.score_bound for ballot in ballots] == [0.5, 0.25]
    assert [ballot.logit_bound for ballot in ballots] == [np.inf, np.inf]


def test_tokens_that_do_not_exist_have_no_part_in_a_longer_row() -> None:
    listed = JudgedRows(_judgement(), [1], 4)
    assert [listed.ballot(row).ids.tolist() for row in (0, 1)] == [[1, 2], [1, 3]]
    long = _judgement(
        lse=_packed(0.0), ids=b"", logits=b"", score_bounds=b"", also=_packed(*[-3.0] * 9)
    )
    whole = JudgedRows(long, [], VOCABULARY, is_dense=True).ballot(0)
    assert whole.ids.tolist() == list(range(VOCABULARY))
    with pytest.raises(ValueError, match="9 logits for 10 tokens"):
        JudgedRows(long, [], 10, is_dense=True)


@pytest.mark.parametrize(
    ("changed", "also"),
    [
        ({}, [6, 7]),
        ({"also": b""}, [7]),
        ({"score_bounds": _packed(0.5)}, [7]),
        ({"logit_bounds": _packed(1.0, 2.0, 3.0)}, [7]),
        ({"logits": _packed(-1.0, -2.0, -1.5)}, [7]),
        ({"lse": b""}, [7]),
    ],
)
def test_message_whose_sizes_do_not_fit_is_refused(
    changed: dict[str, bytes], also: list[int]
) -> None:
    with pytest.raises(ValueError, match=r"logits for|bounds for|reshape"):
        JudgedRows(_judgement(**changed), also, VOCABULARY)


@pytest.mark.parametrize(
    "changed",
    [
        {"lse": _packed(np.nan, 0.0)},
        {"logits": _packed(2.0, -2.0, -1.5, -3.0)},
        {"score_bounds": _packed(np.nan, 0.25)},
    ],
)
def test_row_that_no_logits_can_have_is_refused(changed: dict[str, bytes]) -> None:
    rows = JudgedRows(_judgement(**changed), [7], VOCABULARY)
    with pytest.raises(ValueError, match=r"NaN|with a sum of"):
        rows.ballot(0)
    assert rows.ballot(1).ids.tolist() == [3, 4, 7]
