"""Every message between nodes, as frozen values.

Arrays of numbers are raw little-endian bytes. New fields are appended, with defaults. Messages
contain no masks, distributions, derivable positions or code.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np

from edgecosine.protocol.api.request import MIN_TEMPERATURE
from edgecosine.protocol.wire.tree import TokenTree, checked_tree

PROTOCOL_VERSION = 1

MAX_DRAFT_TOKENS = 128
MAX_NLL = 1e3
MAX_PREFIX_TOKENS = 1 << 18
MAX_VOCABULARY_BLOCKS = 8192
VOCABULARY_BLOCK_TOKENS = 256
VOCABULARY_DIGEST_BYTES = 8
MAX_NAMED_TOKEN_BYTES = 256
MAX_REASON_CHARACTERS = 1024
MAX_LISTED = 4096
MAX_ALSO = 1024
MAX_REVEALED = 8192

Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
RequestKey = Annotated[str, msgspec.Meta(min_length=1, max_length=160)]
Name = Annotated[str, msgspec.Meta(max_length=256)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
Incarnation = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
NamedToken = Annotated[bytes, msgspec.Meta(max_length=MAX_NAMED_TOKEN_BYTES)]
VocabularyDigests = Annotated[
    bytes, msgspec.Meta(max_length=VOCABULARY_DIGEST_BYTES * MAX_VOCABULARY_BLOCKS)
]
Tokens = Annotated[bytes, msgspec.Meta(max_length=4 * MAX_PREFIX_TOKENS)]
DraftTokens = Annotated[bytes, msgspec.Meta(max_length=4 * MAX_DRAFT_TOKENS)]
DraftBytes = Annotated[bytes, msgspec.Meta(max_length=MAX_DRAFT_TOKENS)]
OutcomeBytes = Annotated[bytes, msgspec.Meta(max_length=MAX_DRAFT_TOKENS + 1)]

TreeTokens = DraftTokens
Listed = Annotated[int, msgspec.Meta(ge=0, le=MAX_LISTED)]
Also = Annotated[bytes, msgspec.Meta(max_length=4 * MAX_ALSO)]
Revealed = Annotated[bytes, msgspec.Meta(max_length=4 * MAX_REVEALED)]
Numbers = Annotated[bytes, msgspec.Meta(max_length=4 * MAX_PREFIX_TOKENS)]
NodeNumbers = Annotated[bytes, msgspec.Meta(max_length=4 * (MAX_DRAFT_TOKENS + 1))]

Role = Literal["target", "drafter", "member"]


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=False):
    """Base of all messages: an array on the wire, its tag first."""


class Hello(Message, frozen=True, tag="hello"):
    """First message in both directions."""

    protocol: Count
    cluster: Identifier
    node_id: Identifier
    incarnation: Incarnation
    """Start of the process in milliseconds since 1970: of two processes, the later one counts."""
    role: Role
    model: Name
    quantization: Name
    vocabulary: VocabularyDigests
    """Digests of the vocabulary's blocks, joined; empty for a node that accepts any vocabulary."""
    max_context: Count = 0
    """Longest sequence in tokens; a drafter gets no longer one. 0 for unknown, as from releases
    before this field."""
    member: Name = ""
    """Name of the committee's member that the node serves; its replicas have the same."""
    weight: Share = 0.0
    """The member's weight; 0 leaves it to the target."""
    checkpoint: Name = ""
    """Digest of the member's model and of its number formats."""
    exactness: Name = ""
    """The member's exactness policy; empty from releases before this field."""


class Refuse(Message, frozen=True, tag="refuse"):
    """Last message: why the link ends. `block` lists the sender's tokens of the first vocabulary
    block that differs, so that the receiver can name the first difference."""

    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARACTERS)]
    block_index: Annotated[int, msgspec.Meta(ge=-1, lt=MAX_VOCABULARY_BLOCKS)] = -1
    block: Annotated[list[NamedToken], msgspec.Meta(max_length=VOCABULARY_BLOCK_TOKENS)] = []


class Ping(Message, frozen=True, tag="ping"):
    """Heartbeat."""

    number: Count


class Pong(Message, frozen=True, tag="pong"):
    """Answer to a heartbeat; the pair gives the round-trip time."""

    number: Count


class SharedNoise(msgspec.Struct, frozen=True, array_like=True):
    """Sampling parameters by which a drafter draws with the target's Gumbel noise."""

    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=1e6)] = 0.0
    top_k: Count = 0
    top_p: Share = 1.0
    min_p: Share = 0.0
    seed: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)] = bytes(8)

    @property
    def is_greedy(self) -> bool:
        """Whether the target takes the most probable token at each position."""
        return self.temperature < MIN_TEMPERATURE


class DraftRequest(Message, frozen=True, tag="draft?"):
    """Requests a draft after a prefix: `num_tokens` deep, with the `width` most probable
    continuations in each step.

    The prefix is the first `prefix_len - len(new_tokens)` tokens that the drafter holds for this
    request, followed by `new_tokens`; `prefix_digest` is that of the whole prefix. Accept, reject,
    retry and resync are therefore one operation: the drafter drops all tokens beyond the prefix.

    With `is_ahead` the target is verifying the tree in the three tree fields (as in a `Draft`), and
    requests continuations of its acceptance endpoints. Acceptance may end at the root or at any
    node: `outcome_shares` has a byte for each, in this order, by which the drafter weights the
    continuations; empty for equal weights.
    """

    request_id: RequestKey
    round: Count
    prefix_len: Annotated[int, msgspec.Meta(ge=1, le=MAX_PREFIX_TOKENS)]
    prefix_digest: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    new_tokens: Tokens
    num_tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_DRAFT_TOKENS)]
    width: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1
    coupling: SharedNoise = SharedNoise()
    is_ahead: bool = False
    tree_tokens: DraftTokens = b""
    tree_parents: DraftBytes = b""
    tree_confidences: DraftBytes = b""
    outcome_shares: OutcomeBytes = b""
    is_probe: bool = False
    """Whether no round waits for the draft, so that it delays no other."""
    within_us: Count = 0
    """Time from the arrival of the request in which the drafter answers with the steps that it has
    made; 0 for as long as they take."""


class Release(Message, frozen=True, tag="release"):
    """The request has ended; its KV cache may be freed."""

    request_id: RequestKey


class Draft(Message, frozen=True, tag="draft"):
    """The proposed tokens, in topological order."""

    request_id: RequestKey
    round: Count
    tokens: DraftTokens
    confidences: DraftBytes
    """One byte per token: round(255 * probability)."""
    parents: DraftBytes = b""
    """One byte per token, its parent's index + 1; empty for a chain."""
    compute_us: Count = 0
    """Time from the start of work to the answer, without queueing."""
    is_ahead: bool = False
    top1_matches: DraftBytes = b""
    """One byte for each of the newest tokens read for this draft: 1 where it was the drafter's
    most probable token, else 0."""
    nll: Annotated[float, msgspec.Meta(ge=0.0, le=MAX_NLL)] = 0.0
    """Mean of -log q over the same tokens, in nats."""
    num_steps: Annotated[int, msgspec.Meta(ge=-1, le=1 << 31)] = -1
    """Steps that `compute_us` was spent on; 0 if all tokens were drafted before. -1 for unknown, as
    from releases before this field."""


class OutOfStep(Message, frozen=True, tag="outofstep"):
    """The prefix does not match the receiver's tokens; at most the first `have` are in common."""

    request_id: RequestKey
    round: Count
    have: Count
    is_ahead: bool = False


class Leave(Message, frozen=True, tag="leave"):
    """The sender is shutting down: it answers pending requests and accepts no new ones."""


class JudgeRequest(Message, frozen=True, tag="judge?"):
    """Requests a member's judgement of a prefix and a tree, both as in a `DraftRequest`.

    For the root and each node of the tree the member lists the `num_scores` best tokens after the
    noise of `coupling`, the `num_logits` most probable ones, and the logits of the tokens `also`.
    """

    request_id: RequestKey
    round: Count
    prefix_len: Annotated[int, msgspec.Meta(ge=1, le=MAX_PREFIX_TOKENS)]
    prefix_digest: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    new_tokens: Tokens
    tree_tokens: TreeTokens = b""
    tree_parents: DraftBytes = b""
    coupling: SharedNoise = SharedNoise()
    num_scores: Listed = 0
    num_logits: Listed = 0
    also: Also = b""


class Reveal(Message, frozen=True, tag="reveal?"):
    """Requests more about one node (-1: the root) of the latest judgement of a request: longer
    lists, the logits of `ids`, or with `is_dense` those of the whole vocabulary."""

    request_id: RequestKey
    round: Count
    node: Annotated[int, msgspec.Meta(ge=-1, lt=MAX_DRAFT_TOKENS)]
    ids: Revealed = b""
    num_scores: Listed = 0
    num_logits: Listed = 0
    is_dense: bool = False


class Judgement(Message, frozen=True, tag="judgement"):
    """A member's answer, for each node in the order of the request: the lists of tokens, those by
    score before those by logit, and their logits; the log-sum-exp of the row; and the lowest score
    and logit of each list, which bound those of all other tokens. Numbers are float32."""

    request_id: RequestKey
    round: Count
    lse: NodeNumbers
    ids: Numbers = b""
    logits: Numbers = b""
    score_bounds: NodeNumbers = b""
    logit_bounds: NodeNumbers = b""
    also: Numbers = b""
    """Logits of the tokens that the request named; of the whole vocabulary for a dense row."""
    compute_us: Count = 0


AnyMessage = (
    Hello | Refuse | Ping | Pong | DraftRequest | Release | Draft | OutOfStep | Leave
    | JudgeRequest | Reveal | Judgement
)  # fmt: skip

Work = DraftRequest | JudgeRequest | Reveal | Release
"""What a target sends to a drafter or a member."""


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Token ids as little-endian unsigned 32-bit integers."""
    return struct.pack(f"<{len(tokens)}I", *tokens)


def unpack_tokens(packed: bytes) -> list[int]:
    """Inverse of `pack_tokens`.

    Raises ValueError when the length is no multiple of four.
    """
    return np.frombuffer(packed, dtype="<u4").tolist()  # type: ignore[no-any-return]


def pack_parents(parents: Sequence[int]) -> bytes:
    """Parents of nodes as one byte each: index + 1, so that the root is 0."""
    return bytes([parent + 1 for parent in parents])


_SHARES = tuple(byte / 255 for byte in range(256))


def pack_shares(shares: Sequence[float]) -> bytes:
    """Probabilities as one byte each."""
    return bytes([round(255.0 * share) for share in shares])


PackedTree = tuple[bytes, bytes, bytes]
"""The tokens, parents and confidences of a tree, as in the fields of a `Draft`."""


def pack_tree(tree: TokenTree) -> PackedTree:
    """The fields that `read_tree` reads; the proposers of nodes are not sent."""
    return pack_tokens(tree.tokens), pack_parents(tree.parents), pack_shares(tree.confidences)


def read_tree(tokens: bytes, parents: bytes, confidences: bytes) -> TokenTree | None:
    """The tree in the fields of a `Draft`; None when they are invalid."""
    size = len(confidences)
    if len(tokens) != 4 * size or len(parents) not in {0, size}:
        return None
    above = tuple([parent - 1 for parent in parents]) or tuple(range(-1, size - 1))
    shares = tuple(map(_SHARES.__getitem__, confidences))
    try:
        return checked_tree(tuple(unpack_tokens(tokens)), above, shares, (0,) * size)
    except ValueError:
        return None


def prefix_digest(tokens: Sequence[int], known: int = 0) -> int:
    """CRC-32 of a prefix, or of the tokens after a prefix whose digest is `known`.

    It detects divergence cheaply. A signature is not needed, since a wrong draft cannot change the
    text.
    """
    return zlib.crc32(pack_tokens(tokens), known)
