"""Hypothesis strategies and sample values for everything on the wire."""

from __future__ import annotations

import string
from typing import Any

import msgspec
from hypothesis import strategies as st

from edgecosine.lab.fuzz.seeds import TARGET
from edgecosine.protocol.wire.messages import (
    AnyMessage,
    Draft,
    DraftRequest,
    Hello,
    Leave,
    OutOfStep,
    Ping,
    Pong,
    Refuse,
    Release,
    SharedNoise,
    pack_tokens,
)

counts = st.integers(0, 1 << 31)
identifiers = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=64)
keys = st.text(min_size=1, max_size=160)
token_lists = st.lists(st.integers(0, (1 << 32) - 1), max_size=64)


def hello(**changes: Any) -> Hello:
    """A target's greeting, with some fields changed."""
    return msgspec.structs.replace(TARGET, **({"cluster": "lab"} | changes))


hellos = st.builds(
    Hello,
    protocol=counts,
    cluster=identifiers,
    node_id=identifiers,
    incarnation=st.integers(0, (1 << 53) - 1),
    role=st.sampled_from(["target", "drafter", "member"]),
    model=st.text(max_size=256),
    quantization=st.text(max_size=256),
    vocabulary=st.lists(st.binary(min_size=8, max_size=8), max_size=20).map(b"".join),
    max_context=counts,
)
couplings = st.builds(
    SharedNoise,
    temperature=st.floats(0, 100),
    top_k=counts,
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    seed=st.binary(min_size=8, max_size=8),
)


@st.composite
def draft_requests(draw: st.DrawFn) -> DraftRequest:
    """Draft requests whose new tokens fit their prefix."""
    tokens = draw(token_lists)
    return DraftRequest(
        request_id=draw(keys),
        round=draw(counts),
        prefix_len=draw(st.integers(max(1, len(tokens)), 1 << 18)),
        prefix_digest=draw(st.integers(0, (1 << 32) - 1)),
        new_tokens=pack_tokens(tokens),
        num_tokens=draw(st.integers(0, 64)),
        width=draw(st.integers(1, 8)),
        coupling=draw(couplings),
        is_ahead=draw(st.booleans()),
        tree_tokens=draw(st.binary(max_size=256)),
        tree_parents=draw(st.binary(max_size=64)),
        tree_confidences=draw(st.binary(max_size=64)),
        outcome_shares=draw(st.binary(max_size=65)),
    )


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    """Chains and trees."""
    tokens = draw(token_lists)
    size = len(tokens)
    parents = draw(st.just(b"") | st.tuples(*(st.integers(0, n) for n in range(size))).map(bytes))
    return Draft(
        request_id=draw(keys),
        round=draw(counts),
        tokens=pack_tokens(tokens),
        confidences=draw(st.binary(min_size=size, max_size=size)),
        parents=parents,
        compute_us=draw(counts),
        is_ahead=draw(st.booleans()),
        num_steps=draw(st.integers(-1, 1 << 31)),
    )


messages: st.SearchStrategy[AnyMessage] = st.one_of(
    hellos,
    st.builds(
        Refuse,
        reason=st.text(max_size=1024),
        block_index=st.integers(-1, 8191),
        block=st.lists(st.binary(max_size=256), max_size=20),
    ),
    st.builds(Ping, number=counts),
    st.builds(Pong, number=counts),
    draft_requests(),
    st.builds(Release, request_id=keys),
    drafts(),
    st.builds(OutOfStep, request_id=keys, round=counts, have=counts, is_ahead=st.booleans()),
    st.builds(Leave),
)
