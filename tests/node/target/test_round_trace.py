"""Traces: the times of every round, for requests that ask for a trace."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecosine.balance.policy import POLICIES
from edgecosine.node.target.round_trace import MAX_ROUNDS, RoundTrace
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Answer, Metrics
from edgecosine.protocol.wire.messages import Draft
from tests.node.links.wire_fixtures import run
from tests.support.cluster import Drafter, LinkFault, harness
from tests.support.engines import ScriptedDrafter, ScriptedTarget, babble

LANGUAGE = babble()
PASS_S = 0.002


def _answer(asked: Request, fault_sequences: Sequence[Sequence[LinkFault]]) -> Answer:
    target = ScriptedTarget(LANGUAGE, before_pass=lambda *_: time.sleep(PASS_S))
    setups = [Drafter(ScriptedDrafter(LANGUAGE, hits=0.7), tuple(w)) for w in fault_sequences]

    async def main() -> Answer:
        async with harness(target, setups) as home:
            return await home.answer(asked)

    return run(main())


def _request(policy: str, *, trace: bool) -> Request:
    return Request("a", "1", "ask", "To be", max_tokens=40, policy=policy, trace=trace)


@settings(max_examples=30)
@given(
    st.sampled_from([*POLICIES]),
    st.lists(st.lists(st.sampled_from(list(LinkFault)), min_size=1, max_size=4), max_size=3),
)
def test_rounds_follow_each_other_and_hold_their_drafts(
    policy: str, fault_sequences: list[list[LinkFault]]
) -> None:
    metrics: Metrics = _answer(_request(policy, trace=True), fault_sequences).metrics
    prefill, *rounds = metrics.rounds
    assert prefill.num_nodes == 0
    assert len(rounds) == metrics.num_rounds
    assert prefill.plan == ""
    assert all(times.plan.startswith("K=") for times in rounds)
    assert not rounds or rounds[-1].plan == metrics.plan
    assert sum(times.num_nodes for times in rounds) == metrics.num_draft_tokens
    assert sum(times.num_accepted for times in rounds) == metrics.num_accepted_tokens
    for times, following in itertools.pairwise([*metrics.rounds, None]):
        assert times is not None
        assert 0 <= times.started_s <= times.submitted_s
        assert PASS_S <= times.pass_s <= times.verified_s - times.submitted_s + 2e-6
        if following is not None:
            assert times.verified_s <= following.started_s
        for draft in times.drafts:
            assert times.started_s <= draft.ended_s
            assert draft.asked_s <= draft.ended_s
            assert following is None or draft.ended_s <= following.started_s
            if draft.asked_s < times.started_s:
                continue  # a probe, which may take several rounds
            assert draft.asked_s >= times.submitted_s or draft.ended_s <= times.submitted_s


@pytest.mark.parametrize("policy", ["edgecosine", "cosine-paper"])
def test_no_trace_without_a_request_for_it(policy: str) -> None:
    metrics = _answer(_request(policy, trace=False), [[LinkFault.FINE]]).metrics
    assert metrics.num_accepted_tokens > 0
    assert metrics.rounds == ()


def test_trace_holds_the_drafters_compute_time() -> None:
    trace = RoundTrace(is_on=True)
    draft = Draft("a/1", 1, b"\0" * 8, b"\xff" * 4, compute_us=1500)
    trace.begin()
    trace.drafted("one", time.perf_counter(), draft)
    trace.drafted("other", time.perf_counter(), None)
    trace.end(3, 2, "K=4")
    [times] = trace.rounds
    assert (times.num_nodes, times.num_accepted) == (3, 2)
    assert [(d.drafter, d.num_tokens, d.compute_s) for d in times.drafts] == [
        ("one", 4, 0.0015),
        ("other", 0, 0.0),
    ]


def test_trace_has_an_end() -> None:
    trace = RoundTrace(is_on=True)
    for _ in range(MAX_ROUNDS + 5):
        trace.drafted("one", time.perf_counter(), None)
        trace.end(1, 0, "")
    assert len(trace.rounds) == MAX_ROUNDS
    assert all(len(times.drafts) == 1 for times in trace.rounds)
