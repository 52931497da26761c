"""Drafters that harm do so in the three ways that they name, and change nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest

from edgecosine.engine.base import DraftResult, DraftWork, never
from edgecosine.lab.hostile_drafter import TURN_TOKENS, Harm, HostileDrafter
from edgecosine.protocol.wire.messages import SharedNoise
from edgecosine.protocol.wire.tree import EMPTY_TREE, TokenTree

NUM_VOCABULARY = 10


class Counting:
    """Drafts the number of tokens before, and the one above it."""

    def __init__(self, *, is_complete: bool = True) -> None:
        self.released: list[str] = []
        self._is_complete = is_complete

    def draft(
        self, batch: Sequence[DraftWork], is_interrupted: Callable[[int], bool] = never
    ) -> list[DraftResult]:
        del is_interrupted
        lengths = [len(work.tokens) for work in batch]
        return [
            DraftResult((n % 10, (n + 1) % 10), (0.9, 0.8), is_complete=self._is_complete)
            for n in lengths
        ]

    def release(self, key: str) -> None:
        self.released.append(key)


def work(length: int, *, ahead: TokenTree | None = None, key: str = "a") -> DraftWork:
    return DraftWork(key, tuple(n % 10 for n in range(length)), 2, 2, SharedNoise(), ahead)


def drafted(drafter: HostileDrafter, length: int) -> tuple[int, ...]:
    [result] = drafter.draft([work(length)])
    assert result.confidences == (0.9, 0.8)
    return result.tokens


@pytest.mark.parametrize(("harm", "right"), [("wrong", 0), ("turning", TURN_TOKENS)])
def test_drafts_are_always_wrong_or_in_turn_right_and_wrong(harm: Harm, right: int) -> None:
    drafter = HostileDrafter(Counting(), harm, NUM_VOCABULARY)
    for number in range(0, 3 * TURN_TOKENS, 2):
        honest = (number % 10, (number + 1) % 10)
        is_right = right and number // TURN_TOKENS % 2 == 0
        found = drafted(drafter, number)
        assert all(0 <= token < NUM_VOCABULARY for token in found)
        assert (found == honest) == bool(is_right)
        assert is_right or not set(zip(found, honest, strict=True)) & {(n, n) for n in honest}


def test_draft_whose_time_is_up_is_wrong_before_it_is_complete() -> None:
    drafter = HostileDrafter(Counting(is_complete=False), "wrong", NUM_VOCABULARY)
    found = drafted(drafter, 4)
    assert found[0] != 4
    assert found[1] != 5


def test_late_drafter_waits_longer_while_its_tokens_are_committed() -> None:
    waits: list[float] = []
    drafter = HostileDrafter(Counting(), "late", NUM_VOCABULARY, waits.append)
    for length in range(5, 45, 2):
        assert drafted(drafter, length) == (length % 10, (length + 1) % 10)
    assert all(later > former for former, later in itertools.pairwise(waits))
    longest = waits[-1]
    for _ in range(3):  # the same prefix again: nothing of the drafts was committed
        drafted(drafter, 43)
    assert waits[-1] < longest
    drafter.draft([work(60, ahead=EMPTY_TREE)])
    assert len(waits) == 23


def test_release_is_forwarded_to_the_wrapped_engine() -> None:
    honest = Counting()
    HostileDrafter(honest, "late", NUM_VOCABULARY, lambda _: None).release("a")
    assert honest.released == ["a"]
