"""The prefixes of requests that a drafter or a member keeps in step with its targets."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

from edgecosine.protocol.wire.messages import DraftRequest, JudgeRequest, unpack_tokens
from edgecosine.protocol.wire.prefix import Prefix

MAX_REQUESTS = 1024
"""Number of requests whose prefixes are kept. Beyond it the target with the most of them loses its
least recently used one."""

MAX_TOKEN = 1 << 32

_SEPARATOR = "@"
"""Separates request and target in a key; no node id contains it."""


def key_of(request_id: str, target: str) -> str:
    """The key of a target's request; targets cannot affect each other's."""
    return f"{request_id}{_SEPARATOR}{target}" if target else request_id


def target_of(key: str) -> str:
    """The target in a key; empty if there is none."""
    _, separator, target = key.rpartition(_SEPARATOR)
    return target if separator else ""


def round_robin(keys: Sequence[str]) -> list[int]:
    """Indexes of the first key of each target, then of the second of each, and so on."""
    ranks, so_far = list[int](), Counter[str]()
    for key in keys:
        target = target_of(key)
        ranks.append(so_far[target])
        so_far[target] += 1
    return sorted(range(len(keys)), key=ranks.__getitem__)


class HeldPrefixes:
    """Prefixes by key; a token id is below `num_vocabulary`."""

    def __init__(self, num_vocabulary: int) -> None:
        self._num_vocabulary = num_vocabulary
        self._prefixes: OrderedDict[str, Prefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._prefixes)

    @property
    def keys(self) -> list[str]:
        """The keys, least recently used first."""
        return list(self._prefixes)

    def update(self, key: str, message: DraftRequest | JudgeRequest) -> Sequence[int] | int:
        """Make the prefix equal to the message's; return its tokens.

        If tokens are missing, return the number of tokens that it may have in common with the
        target's; an `OutOfStep` sends this number to the target.
        """
        prefix = self._prefixes.setdefault(key, Prefix())
        self._prefixes.move_to_end(key)
        new_tokens = unpack_tokens(message.new_tokens)
        kept = message.prefix_len - len(new_tokens)
        is_known = all(token < self._num_vocabulary for token in new_tokens)
        if is_known and prefix.reconcile(kept, new_tokens, message.prefix_digest):
            return tuple(prefix.tokens)
        return len(prefix) if kept > len(prefix) else 0

    def drop(self, key: str) -> bool:
        """Forget a prefix; returns whether it was there."""
        return self._prefixes.pop(key, None) is not None

    def next_dropped(self) -> str | None:
        """The key to drop next, if there are too many."""
        if len(self._prefixes) <= MAX_REQUESTS:
            return None
        counts = Counter(map(target_of, self._prefixes))
        most = max(counts, key=lambda target: counts[target])
        return next(key for key in self._prefixes if target_of(key) == most)
