"""The n-grams of a target's text on disk, as numpy's zip of arrays."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from edgecosine.fusion.ngram_table import LONGEST, MOST_COUNT, NgramTable

_NONE = -1
"""Fills the places before an n-gram that is shorter than the longest."""


def write_ngrams(path: Path, table: NgramTable, texts: Iterable[list[int]], least: int) -> int:
    """Write the entries of a table for the n-grams of texts, with counts from `least` on; returns
    their number."""
    seen: dict[tuple[int, ...], tuple[int, int]] = {}
    for text in texts:
        for end in range(1, len(text)):
            for size in range(1, min(LONGEST, end) + 1):
                ngram = tuple(text[end - size : end])
                if ngram not in seen:
                    seen[ngram] = table.entry(ngram)
    kept = {ngram: entry for ngram, entry in seen.items() if entry[1] >= least}
    filled = [(*[_NONE] * (LONGEST - len(ngram)), *ngram) for ngram in kept]
    np.savez_compressed(
        path,
        ngrams=np.array(filled, np.int32).reshape(-1, LONGEST),
        tokens=np.array([token for token, _ in kept.values()], np.int32),
        counts=np.array([count for _, count in kept.values()], np.uint8),
    )
    return len(kept)


def read_ngrams(path: Path) -> NgramTable:
    """The table of a file.

    Raises ValueError when the file has other arrays, or other values than `write_ngrams` writes.
    """
    with np.load(path, allow_pickle=False) as file:
        if {*file.files} != {"ngrams", "tokens", "counts"}:
            raise ValueError(f"{path.name} is no file of n-grams")
        ngrams, tokens, counts = file["ngrams"], file["tokens"], file["counts"]
    size = len(tokens)
    has_shapes = ngrams.shape == (size, LONGEST) and counts.shape == (size,)
    if not has_shapes or (
        size and (ngrams[:, -1].min() < 0 or tokens.min() < 0 or counts.max() > MOST_COUNT)
    ):
        raise ValueError(f"{path.name} has n-grams with values out of range")
    table = NgramTable()
    rows = zip(ngrams.tolist(), tokens.tolist(), counts.tolist(), strict=True)
    for ngram, token, count in rows:
        table.put([each for each in ngram if each != _NONE], token, count)
    return table
