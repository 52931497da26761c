"""Assigns sequences to slots of the KV cache. No tensors.

A slot records the tokens whose keys and values it holds. A released slot keeps them until another
session needs it, so a following turn of a conversation finds its prefix in the cache.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from edgecosine.engine.rotary import mark_of


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    one, other = (
        list(one),
        list(other),
    )  # slices of a list and of a tuple are never equal
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low if one[low] != other[low] else low + 1


@dataclass(slots=True)
class KvSlot:
    """One slot of the cache."""

    index: int
    tokens: list[int] = field(default_factory=list)
    """The tokens whose KV positions are filled, in order."""
    key: str | None = None
    """The session that owns the slot; None: free."""
    last_used: int = 0
    mark: int = 0
    """The offset of the positions of its tokens (`rotary.mark_of`)."""

    def keep(self, length: int) -> None:
        """Drop the tokens after the first `length`; no memory is moved or freed."""
        del self.tokens[length:]


class KvSlots:
    """Finds a slot for a session; evicts the least recently used one."""

    def __init__(self, count: int, switches_at: int = 0) -> None:
        """Sequences of more than `switches_at` tokens have other keys and values; 0: none."""
        self._switches_at = switches_at
        self._slots = [KvSlot(index) for index in range(count)]
        self._by_key: dict[str, KvSlot] = {}
        self._clock = 0
        self.num_looked_up = 0
        """Tokens of sessions that got a slot, since the start."""
        self.num_found = 0
        """Those of them that the slot held."""

    def __len__(self) -> int:
        return len(self._slots)

    def __repr__(self) -> str:
        return f"<KvSlots [{len(self._by_key)} of {len(self._slots)} owned]>"

    @property
    def num_tokens(self) -> int:
        """Tokens in the slots that sessions own."""
        return sum(len(slot.tokens) for slot in self._slots if slot.key is not None)

    def acquire(self, key: str, tokens: Sequence[int], busy: Collection[str]) -> KvSlot:
        """The slot of session `key`, cut to a prefix of `tokens`.

        A session without a slot gets the free one with the longest common prefix, or else the
        least recently used one of a session that is not in `busy`.
        """
        self._clock += 1
        slot = self._by_key.get(key) or self._find(tokens, busy)
        is_new = slot.key != key
        if is_new:
            if slot.key is not None:
                del self._by_key[slot.key]
            slot.key = key
            self._by_key[key] = slot
        slot.last_used = self._clock
        if slot.mark != (mark := mark_of(len(tokens), self._switches_at)):
            slot.mark = mark
            slot.keep(0)
        slot.keep(common_prefix(slot.tokens, tokens))
        if is_new:
            self.num_looked_up += len(tokens)
            self.num_found += len(slot.tokens)
        return slot

    def _find(self, tokens: Sequence[int], busy: Collection[str]) -> KvSlot:
        free = [slot for slot in self._slots if slot.key is None]
        if free:
            return max(free, key=lambda s: (common_prefix(s.tokens, tokens), -s.last_used))
        idle = [slot for slot in self._slots if slot.key not in busy]
        if not idle:
            raise ValueError("a pass has more sessions than the cache has slots")
        return min(idle, key=lambda s: s.last_used)

    def empty(self, keys: Iterable[str]) -> None:
        """Drop the tokens of these sessions' slots, whose content is undefined."""
        for key in keys:
            if (slot := self._by_key.get(key)) is not None:
                slot.keep(0)

    def release(self, key: str) -> None:
        """Release the slot of a session; its tokens stay for reuse."""
        slot = self._by_key.pop(key, None)
        if slot is not None:
            slot.key = None
