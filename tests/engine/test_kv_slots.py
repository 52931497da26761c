"""Slots keep prefixes, and the least recently used one is evicted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.engine.kv_slots import KvSlots, common_prefix

tokens = st.lists(st.integers(0, 2), max_size=12)


@given(tokens, tokens)
def test_common_prefix_is_the_longest_one(one: list[int], other: list[int]) -> None:
    size = common_prefix(one, other)
    assert one[:size] == other[:size]
    assert size == min(len(one), len(other)) or one[size] != other[size]


@given(st.lists(st.tuples(st.integers(0, 4), tokens, st.booleans()), max_size=40))
def test_slot_has_a_prefix_of_the_requested_tokens(
    steps: list[tuple[int, list[int], bool]],
) -> None:
    slots = KvSlots(3)
    for session, wanted, leaves in steps:
        slot = slots.acquire(str(session), wanted, {str(session)})
        assert slot.tokens == wanted[: len(slot.tokens)]
        slot.tokens[:] = wanted
        if leaves:
            slots.release(str(session))


def test_least_recently_used_session_is_evicted() -> None:
    slots = KvSlots(2)
    first, second = slots.acquire("a", [1], {"a"}), slots.acquire("b", [2], {"b"})
    slots.acquire("a", [1], {"a"})
    assert slots.acquire("c", [3], {"c"}) is second
    assert slots.acquire("d", [4], {"d"}) is first


def test_sessions_of_one_batch_do_not_evict_each_other() -> None:
    slots = KvSlots(1)
    slots.acquire("a", [1], {"a", "b"})
    with pytest.raises(ValueError, match="more sessions"):
        slots.acquire("b", [1], {"a", "b"})
