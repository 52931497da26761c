"""Assigns sequences to slots of the KV cache. No tensors.

A slot records the tokens whose keys and values it holds. A released slot keeps them until another
session needs it, so a following turn of a conversation finds its prefix in the cache. A prefix that
any other slot holds, of a running session or an ended one, is copied instead of computed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from edgecosine.engine.rotary import mark_of

BLOCK: Final = 16
"""Fewer tokens than these are computed rather than copied or waited for."""

CopyPrefix = Callable[[int, int, int, int], None]
"""copy(source, target, start, end): keys and values of these positions from slot to slot."""


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
    taken: int = 0
    """When its session got it, on the clock of `last_used`."""
    lacking: int = 0
    """Tokens that its session began with and no slot had yet."""
    mark: int = 0
    """The offset of the positions of its tokens (`rotary.mark_of`)."""

    def keep(self, length: int) -> None:
        """Drop the tokens after the first `length`; no memory is moved or freed."""
        del self.tokens[length:]

    def shared(self, tokens: Sequence[int], mark: int) -> int:
        """Tokens that a sequence with the offset `mark` begins with and the slot holds; 0 for less
        than a block."""
        if self.mark != mark or self.tokens[:BLOCK] != list(tokens[:BLOCK]):
            return 0
        return common_prefix(self.tokens, tokens)


class KvSlots:
    """Finds a slot for a session, and copies what other slots hold of its tokens; evicts the least
    recently used slot."""

    def __init__(self, count: int, copy: CopyPrefix, switches_at: int = 0) -> None:
        """Sequences of more than `switches_at` tokens have other keys and values; 0: none."""
        self._copy, self._switches_at = copy, switches_at
        self._slots = [KvSlot(index) for index in range(count)]
        self._by_key: dict[str, KvSlot] = {}
        self._clock = 0
        self.num_looked_up = 0
        """Tokens of sessions that got a slot, since the start."""
        self.num_found = 0
        """Those of them that any slot held."""

    def __len__(self) -> int:
        return len(self._slots)

    def __repr__(self) -> str:
        return f"<KvSlots [{len(self._by_key)} of {len(self._slots)} owned]>"

    @property
    def num_tokens(self) -> int:
        """Tokens in the slots that sessions own."""
        return sum(len(slot.tokens) for slot in self._slots if slot.key is not None)

    def acquire(
        self, key: str, tokens: Sequence[int], busy: Collection[str], *, copies: bool = True
    ) -> KvSlot:
        """The slot of session `key`, cut to a prefix of `tokens`; with `copies`, the longest that
        any slot holds, but for the last token.

        A session without a slot gets a free one that loses less than a block, or else the least
        recently used one of those that are free, or of sessions that are not in `busy`. All slots
        of a pass are acquired before their tokens are added, as those are not computed yet.
        """
        self._clock += 1
        mark = mark_of(len(tokens), self._switches_at)
        slot = self._by_key.get(key) or self._take(key, tokens, mark, busy)
        is_new = slot.taken == self._clock
        slot.last_used = self._clock
        if slot.mark != mark:
            slot.mark = mark
            slot.keep(0)
        slot.keep(common_prefix(slot.tokens, tokens))
        num_own = 0 if is_new else len(slot.tokens)
        if copies and len(tokens) - 1 - len(slot.tokens) >= BLOCK:
            self._share(slot, tokens)
        if is_new:
            slot.lacking = len(tokens)
            self.num_looked_up += len(tokens)
        num_found = min(len(slot.tokens) - num_own, slot.lacking)
        slot.lacking -= num_found
        self.num_found += num_found
        return slot

    def _take(self, key: str, tokens: Sequence[int], mark: int, busy: Collection[str]) -> KvSlot:
        slot = self._find(tokens, mark, busy)
        if slot.key is not None:
            del self._by_key[slot.key]
        slot.key, slot.taken = key, self._clock
        self._by_key[key] = slot
        return slot

    def _find(self, tokens: Sequence[int], mark: int, busy: Collection[str]) -> KvSlot:
        free = [slot for slot in self._slots if slot.key is None]
        held = [(slot.shared(tokens, mark), slot.last_used, slot) for slot in free]
        whole = [
            entry for entry in held if 0 <= len(entry[2].tokens) - entry[0] < BLOCK <= entry[0]
        ]
        if whole:
            return max(whole, key=lambda entry: entry[:2])[2]
        idle = free or [slot for slot in self._slots if slot.key not in busy]
        if not idle:
            raise ValueError("a pass has more sessions than the cache has slots")
        return min(idle, key=lambda s: s.last_used)

    def _share(self, slot: KvSlot, tokens: Sequence[int]) -> None:
        """Copy the longest prefix of `tokens` but the last one that another slot holds, where it is
        longer by a block."""
        start, most = len(slot.tokens), len(tokens) - 1
        held = [(min(most, s.shared(tokens, slot.mark)), s.index) for s in self._slots]
        end, source = max(held)
        if end - start >= BLOCK:
            self._copy(source, slot.index, start, end)
            slot.tokens.extend(tokens[start:end])

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
