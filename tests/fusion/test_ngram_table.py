"""N-grams of earlier texts tell what follows, forget what no longer does, and stay bounded."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from edgecosine.fusion.ngram_file import read_ngrams, write_ngrams
from edgecosine.fusion.ngram_table import LONGEST, MOST_COUNT, NgramTable
from edgecosine.models import DEFAULT_TARGET
from edgecosine.models.catalogue import packaged_ngrams

PHRASE = [11, 12, 13, 14]


def taught(*texts: list[int], times: int = 1) -> NgramTable:
    table = NgramTable(10)
    for text in texts:
        for _ in range(times):
            table.learn(text, 0)
    return table


def test_token_behind_a_known_ngram_is_told_with_rising_confidence() -> None:
    found = [taught(PHRASE, times=times).next_token([1, 11, 12, 13]) for times in (1, 3, 20)]
    tokens, confidences = zip(*[entry for entry in found if entry], strict=True)
    assert tokens == (14, 14, 14)
    assert 0.0 < confidences[0] < confidences[1] < confidences[2] < 1.0


def test_longer_ngram_decides_where_the_shorter_one_is_ambiguous() -> None:
    table = taught([1, 5, 7], [2, 5, 9], times=9)
    assert [table.next_token([first, 5]) for first in (1, 2)] == [
        (token, pytest.approx(0.1 * MOST_COUNT + 0.03)) for token in (7, 9)
    ]


def test_nothing_is_told_of_unknown_ngrams_and_of_no_tokens() -> None:
    assert taught(PHRASE).next_token([99, 98, 97]) is None
    assert taught(PHRASE).next_token([]) is None


def test_what_comes_instead_takes_the_place_after_as_many_times() -> None:
    table = taught(PHRASE, times=20)
    for _ in range(MOST_COUNT):
        entry = table.next_token([11, 12, 13])
        assert entry is not None
        assert entry[0] == 14
        table.learn([11, 12, 13, 99], 3)
    entry = table.next_token([11, 12, 13])
    assert entry is not None
    assert entry[0] == 99


def test_only_tokens_from_the_start_are_learned_with_those_before_them() -> None:
    table = NgramTable(10)
    table.learn(PHRASE, 3)
    assert table.entry([11]) == table.entry([11, 12]) == (0, 0)
    assert table.entry([11, 12, 13]) == table.entry([13]) == (14, 1)


def test_slots_are_never_more_and_often_used_entries_outlast_chance_ones() -> None:
    table, rng = taught(PHRASE, times=50), random.Random(0)
    for _ in range(200):
        table.learn([rng.randrange(1000, 50_000) for _ in range(4)], 0)
        table.learn(PHRASE, 0)
    assert table.entry(PHRASE[:3]) == (14, MOST_COUNT)


def test_copy_learns_apart() -> None:
    table = taught(PHRASE)
    table.copy().learn([11, 12, 13, 99], 3)
    assert table.entry(PHRASE[:3]) == (14, 1)


def test_file_has_the_ngrams_that_came_often_enough(tmp_path: Path) -> None:
    table = taught(PHRASE, [21, 22], times=3)
    table.learn([31, 32], 0)
    path = tmp_path / "ngrams.npz"
    num_entries = write_ngrams(path, table, [PHRASE, [21, 22], [31, 32]], 2)
    found = read_ngrams(path)
    assert num_entries == sum(min(LONGEST, end) for end in range(1, len(PHRASE))) + 1
    assert [found.entry(ngram) for ngram in ([21], PHRASE[:3], [31])] == [(22, 3), (14, 3), (0, 0)]


@pytest.mark.parametrize(
    "changed",
    [
        {"ngrams": np.zeros((2, LONGEST), np.int32)},
        {"ngrams": np.full((1, LONGEST), -1, np.int32)},
        {"tokens": np.full(1, -5, np.int32)},
        {"counts": np.full(1, MOST_COUNT + 1, np.uint8)},
        {"more": np.zeros(1)},
    ],
)
def test_file_with_other_values_is_refused(
    tmp_path: Path, changed: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]
) -> None:
    arrays = {
        "ngrams": np.ones((1, LONGEST), np.int32),
        "tokens": np.ones(1, np.int32),
        "counts": np.ones(1, np.uint8),
    }
    path = tmp_path / "ngrams.npz"
    np.savez(path, **{**arrays, **changed})
    with pytest.raises(ValueError, match=r"^ngrams.npz "):
        read_ngrams(path)


def test_packaged_target_has_a_file_of_ngrams_and_other_targets_none() -> None:
    path = packaged_ngrams(DEFAULT_TARGET)
    assert path is not None
    table = read_ngrams(path)
    assert sum(table.entry([token])[1] > 0 for token in range(49_152)) > 1000
    assert packaged_ngrams("gemma-3-270m") is packaged_ngrams(f"../{DEFAULT_TARGET}") is None
