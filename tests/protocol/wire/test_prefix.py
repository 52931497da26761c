"""Prefixes: both ends of a link agree, or know that they do not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edgecosine.protocol.wire.messages import prefix_digest
from edgecosine.protocol.wire.prefix import Prefix

tokens = st.lists(st.integers(0, (1 << 32) - 1), max_size=8)


@given(tokens)
def test_running_digests_are_those_of_the_prefixes(sequence: list[int]) -> None:
    prefix = Prefix(sequence)
    for length in range(len(sequence) + 1):
        assert prefix.digest(length) == prefix_digest(sequence[:length])
    assert prefix.digest() == prefix_digest(sequence)


@given(tokens, tokens, st.integers(0, 8))
def test_reconciled_prefix_equals_the_senders(held: list[int], new: list[int], kept: int) -> None:
    prefix = Prefix(held)
    whole = [*held[:kept], *new]
    assert prefix.reconcile(kept, new, prefix_digest(whole)) == (kept <= len(held))
    assert prefix.tokens == (whole if kept <= len(held) else held)


@given(tokens, tokens, st.integers(-2, 10), st.integers(0, (1 << 32) - 1))
def test_refused_reconciliation_changes_nothing(
    held: list[int], new: list[int], kept: int, digest: int
) -> None:
    prefix = Prefix(held)
    if not prefix.reconcile(kept, new, digest):
        assert prefix.tokens == held
        assert prefix.digest() == prefix_digest(held)


@given(tokens, tokens, tokens)
def test_wrong_prefix_is_detected(ours: list[int], theirs: list[int], new: list[int]) -> None:
    same_length = theirs[: len(ours)] + ours[len(theirs) :]
    prefix = Prefix(ours)
    fits = prefix.reconcile(len(ours), new, prefix_digest([*same_length, *new]))
    assert fits == (same_length == ours)


class TwoEnds(RuleBasedStateMachine):
    """A sender that grows and cuts its sequence, a receiver that gets only some of it."""

    def __init__(self) -> None:
        super().__init__()
        self.sender: list[int] = []
        self.receiver = Prefix()
        self.believed = 0
        """Tokens that the sender believes the receiver to have."""

    @rule(new=tokens)
    def grow(self, new: list[int]) -> None:
        self.sender += new

    @rule(size=st.integers(0, 8))
    def cut(self, size: int) -> None:
        del self.sender[size:]
        self.believed = min(self.believed, size)

    @rule()
    def forget(self) -> None:
        self.receiver = Prefix()

    @rule(is_lost=st.booleans())
    def send(self, is_lost: bool) -> None:
        kept, self.believed = min(self.believed, len(self.sender)), len(self.sender)
        if is_lost:
            return
        digest = prefix_digest(self.sender)
        if not self.receiver.reconcile(kept, self.sender[kept:], digest):
            assert self.receiver.reconcile(0, self.sender, digest)
        assert self.receiver.tokens == self.sender

    @invariant()
    def digests_fit_tokens(self) -> None:
        assert self.receiver.digest() == prefix_digest(self.receiver.tokens)


TestTwoEnds = TwoEnds.TestCase
