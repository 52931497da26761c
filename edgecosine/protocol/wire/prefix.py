"""A token sequence with the digest of each prefix, kept at both ends of a link."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from edgecosine.protocol.wire.messages import pack_tokens, prefix_digest


class Prefix:
    """Tokens that can be extended and truncated, with O(1) lookup of any prefix digest."""

    __slots__ = ("_digests", "tokens")

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens: list[int] = []
        self._digests = [0]
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def digest(self, length: int | None = None) -> int:
        """Digest of the first `length` tokens, of all by default."""
        return self._digests[len(self.tokens) if length is None else length]

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        packed, digest = pack_tokens(tokens), self._digests[-1]
        for at in range(0, len(packed), 4):
            digest = zlib.crc32(packed[at : at + 4], digest)
            self._digests.append(digest)
        self.tokens.extend(tokens)

    def reconcile(self, kept: int, new_tokens: Sequence[int], digest: int) -> bool:
        """Keep `kept` tokens, drop the rest and append `new_tokens`, if the result has `digest`.

        Returns False, without a change, otherwise.
        """
        if not 0 <= kept <= len(self.tokens):
            return False
        if prefix_digest(list(new_tokens), self._digests[kept]) != digest:
            return False
        del self.tokens[kept:], self._digests[kept + 1 :]
        self.extend(new_tokens)
        return True
