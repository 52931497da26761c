"""Slots keep prefixes and copy them from each other; the least recently used one is evicted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.engine.kv_slots import BLOCK, KvSlot, KvSlots, common_prefix

tokens = st.lists(st.integers(0, 2), max_size=12)


@given(tokens, tokens)
def test_common_prefix_is_the_longest_one(one: list[int], other: list[int]) -> None:
    size = common_prefix(one, other)
    assert one[:size] == other[:size]
    assert size == min(len(one), len(other)) or one[size] != other[size]


class Cells:
    """What the KV positions of some slots hold: the tokens up to each."""

    def __init__(self, count: int, switches_at: int = 0) -> None:
        self.rows: list[list[tuple[int, ...]]] = [[()] * 99 for _ in range(count)]
        self.num_copied = 0
        self.slots = KvSlots(count, self.copy, switches_at)

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        self.rows[target][start:end] = self.rows[source][start:end]
        self.num_copied += end - start

    def read(self, slot: KvSlot, tokens: list[int]) -> None:
        """Compute what the slot lacks."""
        for position in range(len(slot.tokens), len(tokens)):
            self.rows[slot.index][position] = (slot.mark, *tokens[: position + 1])
        slot.tokens[:] = tokens

    def has(self, slot: KvSlot, tokens: list[int]) -> bool:
        """Whether the slot's positions hold what its tokens say, and these are of `tokens`."""
        held = [(slot.mark, *tokens[: end + 1]) for end in range(len(slot.tokens))]
        is_prefix = slot.tokens == tokens[: len(slot.tokens)]
        return is_prefix and self.rows[slot.index][: len(held)] == held

    def serve(self, key: str, tokens: list[int]) -> int:
        """Read a session's tokens; returns how many were not in the cache."""
        slot = self.slots.acquire(key, tokens, {key})
        assert self.has(slot, tokens)
        missing = len(tokens) - len(slot.tokens)
        self.read(slot, tokens)
        return missing


lengths = st.sampled_from([1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK])
prefixes = st.lists(st.tuples(st.integers(0, 1), lengths), min_size=1, max_size=2).map(
    lambda parts: [token for token, length in parts for _ in range(length)]
)
steps = st.lists(st.tuples(st.integers(0, 4), prefixes, st.booleans()), max_size=40)


@given(steps, st.sampled_from([0, 2 * BLOCK]))
def test_slot_holds_a_prefix_of_the_requested_tokens(
    works: list[tuple[int, list[int], bool]], switches_at: int
) -> None:
    cells = Cells(3, switches_at)
    for session, wanted, leaves in works:
        cells.serve(str(session), wanted)
        if leaves:
            cells.slots.release(str(session))
    assert cells.slots.num_found <= cells.slots.num_looked_up


SYSTEM = [7] * (3 * BLOCK)


@pytest.mark.parametrize("is_released", [False, True])
def test_a_prefix_of_another_session_is_copied(is_released: bool) -> None:
    cells = Cells(3)
    assert cells.serve("a", [*SYSTEM, *range(BLOCK)]) == len(SYSTEM) + BLOCK
    if is_released:
        cells.slots.release("a")
    assert cells.serve("b", [*SYSTEM, 1]) == 1
    assert cells.num_copied == cells.slots.num_found == len(SYSTEM)
    assert cells.serve("a", [*SYSTEM, *range(BLOCK + 1)]) == 1, "the slot was taken"


def test_a_conversation_goes_on_in_its_slot() -> None:
    cells = Cells(3)
    cells.serve("a", SYSTEM)
    cells.slots.release("a")
    assert cells.serve("b", [*SYSTEM, 1, 2]) == 2
    assert cells.num_copied == 0


def test_the_last_token_is_never_copied() -> None:
    cells = Cells(3)
    cells.serve("a", SYSTEM)
    assert cells.serve("b", SYSTEM) == 1


def test_less_than_a_block_is_computed_again() -> None:
    cells = Cells(3)
    cells.serve("a", [*SYSTEM[: BLOCK - 1], 1])
    assert cells.serve("b", [*SYSTEM[: BLOCK - 1], 2]) == BLOCK
    assert cells.num_copied == 0


def test_least_recently_used_session_is_evicted() -> None:
    slots = Cells(2).slots
    first, second = slots.acquire("a", [1], {"a"}), slots.acquire("b", [2], {"b"})
    slots.acquire("a", [1], {"a"})
    assert slots.acquire("c", [3], {"c"}) is second
    assert slots.acquire("d", [4], {"d"}) is first


def test_sessions_of_one_batch_do_not_evict_each_other() -> None:
    slots = Cells(1).slots
    slots.acquire("a", [1], {"a", "b"})
    with pytest.raises(ValueError, match="more sessions"):
        slots.acquire("b", [1], {"a", "b"})
