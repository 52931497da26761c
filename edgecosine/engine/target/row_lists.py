"""Lists the tokens of rows of logits that a committee's coordinator needs to draw from a mixture.

The bounds are rounded upwards, since float32 holds them on the wire.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from edgecosine.engine.base import Floats, RowLists, Wanted
from edgecosine.engine.gumbel import gumbel_rows


def list_rows(rows: torch.Tensor, positions: Sequence[int], wanted: Wanted) -> RowLists:
    """The lists of `rows` [rows, vocabulary], whose tokens are drawn for these positions."""
    rows = rows.float()
    lse = torch.logsumexp(rows.double(), 1).float()
    ids = [torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)]
    score_bounds = logit_bounds = None
    also = rows if wanted.is_dense else rows[:, list(wanted.also)]
    if wanted.num_scores and not wanted.is_dense:
        values, best = _best(_scores(rows, lse, positions, wanted), wanted.num_scores)
        ids.append(best)
        score_bounds = _bounds(values, rows.shape[1])
    if wanted.num_logits and not wanted.is_dense:
        values, best = _best(rows, wanted.num_logits)
        ids.append(best)
        logit_bounds = _bounds(values, rows.shape[1])
    listed = torch.cat(ids, 1)
    return RowLists(
        lse=_numpy(lse),
        ids=listed.cpu().numpy().astype(np.uint32),
        logits=_numpy(rows.gather(1, listed)),
        score_bounds=score_bounds,
        logit_bounds=logit_bounds,
        also=_numpy(also),
    )


def _scores(
    rows: torch.Tensor, lse: torch.Tensor, positions: Sequence[int], wanted: Wanted
) -> torch.Tensor:
    tokens = torch.arange(rows.shape[1], device=rows.device)
    seed = int.from_bytes(wanted.noise.seed, "little")
    logprobs = rows.double() - lse.double()[:, None]
    return logprobs / wanted.noise.temperature + gumbel_rows(seed, positions, tokens)


def _best(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    best = torch.topk(values, min(count, values.shape[1]))
    return best.values, best.indices


def _bounds(best: torch.Tensor, vocabulary: int) -> Floats:
    lowest = best[:, -1].double().cpu().numpy()
    if best.shape[1] == vocabulary:
        return np.full(len(lowest), -np.inf, dtype=np.float32)
    rounded: Floats = lowest.astype(np.float32)
    return np.where(rounded < lowest, np.nextafter(rounded, np.float32(np.inf)), rounded)


def _numpy(values: torch.Tensor) -> Floats:
    numbers: Floats = values.cpu().numpy()
    return numbers
