"""A vocabulary as a value that two nodes compare by digests.

Tokens form blocks of 256, each with a digest of 8 bytes. Two nodes exchange the digests; where one
differs they exchange the block, so that each can report the first token that differs.
An empty token is an unused entry; unused entries at the end are padding and do not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final, Self

from edgecosine.protocol.wire.messages import (
    MAX_NAMED_TOKEN_BYTES,
    MAX_VOCABULARY_BLOCKS,
    VOCABULARY_BLOCK_TOKENS,
    VOCABULARY_DIGEST_BYTES,
)

_LENGTH_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class TokenDifference:
    """The first token id at which two vocabularies differ; empty bytes stand for no token."""

    token_id: int
    ours: bytes
    theirs: bytes

    def __str__(self) -> str:
        return f"token {self.token_id} is {_shown(self.ours)} here and {_shown(self.theirs)} there"


@dataclass(frozen=True, slots=True, repr=False)
class Vocabulary:
    """Tokens by id without padding, and the digests of their blocks, joined."""

    tokens: tuple[bytes, ...] = ()
    digests: bytes = b""

    @classmethod
    def of(cls, tokens: Iterable[bytes | str | None]) -> Self:
        """The vocabulary of a tokenizer's table, by id; None or an empty token is an unused entry.

        Raises ValueError when the table is too large for a Hello.
        """
        table = [_as_bytes(token) for token in tokens]
        while table and not table[-1]:
            table.pop()
        limit = MAX_VOCABULARY_BLOCKS * VOCABULARY_BLOCK_TOKENS
        if len(table) > limit:
            raise ValueError(f"a vocabulary has at most {limit} tokens; this has {len(table)}")
        starts = range(0, len(table), VOCABULARY_BLOCK_TOKENS)
        blocks = (table[start : start + VOCABULARY_BLOCK_TOKENS] for start in starts)
        return cls(tuple(table), b"".join(_digest(block) for block in blocks))

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"<Vocabulary {self.short_digest or 'any'} of {len(self)} tokens>"

    @property
    def short_digest(self) -> str:
        """Sixteen hexadecimal digits for the whole; empty when there are no tokens."""
        return short_digest(self.digests)

    def first_difference(self, digests: bytes) -> int | None:
        """Index of the first block whose digest differs from the peer's, if there is one."""
        pairs = zip_longest(_split(self.digests), _split(digests))
        return next(
            (index for index, (ours, theirs) in enumerate(pairs) if ours != theirs),
            None,
        )

    def block(self, index: int) -> list[bytes]:
        """The tokens of a block as in a refusal: very long ones are cut."""
        start = index * VOCABULARY_BLOCK_TOKENS
        tokens = self.tokens[start : start + VOCABULARY_BLOCK_TOKENS]
        return [token[:MAX_NAMED_TOKEN_BYTES] for token in tokens]

    def difference(self, index: int, theirs: list[bytes]) -> TokenDifference | None:
        """The first token that differs from the peer's block; None if it is beyond a cut."""
        pairs = zip_longest(self.block(index), theirs, fillvalue=b"")
        for offset, (our_token, their_token) in enumerate(pairs):
            if our_token != their_token:
                token_id = index * VOCABULARY_BLOCK_TOKENS + offset
                return TokenDifference(token_id, our_token, their_token)
        return None


ANY_VOCABULARY: Final = Vocabulary()
"""Matches any vocabulary, for a drafter without a model."""


def short_digest(digests: bytes) -> str:
    """Sixteen hexadecimal digits for a vocabulary whose blocks have these digests."""
    if not digests:
        return ""
    return hashlib.blake2b(digests, digest_size=VOCABULARY_DIGEST_BYTES).hexdigest()


def _as_bytes(token: bytes | str | None) -> bytes:
    if token is None:
        return b""
    return token if isinstance(token, bytes) else token.encode("utf-8", "surrogatepass")


def _digest(block: list[bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=VOCABULARY_DIGEST_BYTES)
    for token in block:
        digest.update(len(token).to_bytes(_LENGTH_BYTES, "big"))
        digest.update(token)
    return digest.digest()


def _split(digests: bytes) -> list[bytes]:
    size = VOCABULARY_DIGEST_BYTES
    return [digests[start : start + size] for start in range(0, len(digests), size)]


def _shown(token: bytes) -> str:
    return repr(token) if token else "unused"
