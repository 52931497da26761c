"""Metrics: what is shown is what was measured, under names that Prometheus accepts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as read_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from edgecosine.balance.admission import AdmissionControl
from edgecosine.counters import Counters
from edgecosine.metrics.families import Family, target_metrics
from edgecosine.metrics.histogram import Histogram
from edgecosine.metrics.measurements import MAX_DRAFTERS, Measurements
from edgecosine.metrics.prometheus import render
from edgecosine.node.cluster_queue.local_queue import LocalQueue
from edgecosine.node.durability.interface import NoJournal
from edgecosine.node.gateway.reply_sink import MqttReplySink
from edgecosine.node.gateway.request_manager import RequestManager
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.request_record import RequestRecord, RequestTicket
from edgecosine.protocol.api.topics import Topics
from tests.node.links.wire_fixtures import run
from tests.support.cluster import Drafter, harness
from tests.support.engines import ScriptedDrafter, ScriptedTarget, babble
from tests.support.fakes import ScriptedService

STATE: Mapping[str, Any] = {
    "model": "tiny", "exactness": "bitwise", "dtype": "float32", "quantization": "none",
    "running": 1, "queued": 2, "busy_s": 3.0, "idle_s": 4.0,
    "kv_cache": {"use": 0.25, "looked_up": 9, "found": 4},
    "counters": {"refused": {"overloaded": 3}, "lost_links": 2},
    "drafters": {
        "d1": {"rtt_ms": 2.0, "token_ms": None, "acceptance": 0.5, "drafted": 7, "late": 1}
    },
    "not_linked": ["d2: refused"],
}  # fmt: skip


def samples(measured: Measurements, state: Mapping[str, Any] = STATE) -> dict[str, float]:
    """All samples by name and labels."""
    text, content_type = render(target_metrics(measured, state, "1.0"))
    assert content_type.startswith("text/plain")
    return {
        f"{s.name}{sorted(s.labels.items()) if s.labels else ''}": s.value
        for family in text_string_to_metric_families(text.decode())
        for s in family.samples
    }


def vllm(name: str, **labels: str) -> str:
    return f"vllm:{name}{sorted({'model_name': 'tiny', 'engine': '0', **labels}.items())}"


def own(name: str, **labels: str) -> str:
    return f"edgecosine_{name}{sorted(labels.items())}"


@given(st.lists(st.floats(0, 1e4)))
def test_histogram_counts_each_value_in_all_buckets_that_hold_it(values: list[float]) -> None:
    histogram = Histogram((0.5, 2.0, 100.0))
    for value in values:
        histogram.observe(value)
    for bound, count in histogram.buckets():
        assert count == sum(value <= bound for value in values)
    assert histogram.total == pytest.approx(sum(values))


def test_answers_of_sessions_add_up_in_the_metrics() -> None:
    language = babble()

    async def main() -> None:
        drafters = [Drafter(ScriptedDrafter(language)), Drafter(ScriptedDrafter(babble(salt=1)))]
        async with harness(ScriptedTarget(language), drafters) as home:
            answers = [
                await home.answer(Request("a", str(n), "ask", "To be", max_tokens=40))
                for n in range(3)
            ]
        seen = samples(home.measurements)
        metrics = [answer.metrics for answer in answers]
        num_accepted = sum(each.num_accepted_tokens for each in metrics)
        assert num_accepted > 0
        assert seen[vllm("spec_decode_num_accepted_tokens_total")] == num_accepted
        assert seen[vllm("spec_decode_num_draft_tokens_total")] == sum(
            each.num_draft_tokens for each in metrics
        )
        by_position = [
            value for name, value in seen.items() if "accepted_tokens_per_pos_total" in name
        ]
        assert sum(by_position) == num_accepted
        assert by_position == sorted(by_position, reverse=True)
        for drafter in ("drafter-0", "drafter-1"):
            shares = [each.drafters[drafter] for each in metrics if drafter in each.drafters]
            labels = {"drafter": drafter, "outcome": "accepted"}
            assert seen.get(own("draft_tokens_total", **labels), 0) == sum(
                share.accepted for share in shares
            )
        num_rounds = sum(each.num_rounds for each in metrics)
        for part in ("plan", "draft", "verify"):
            assert seen[own("round_seconds_count", part=part)] == num_rounds
        assert seen["edgecosine_plan_gamma_count"] == num_rounds
        assert seen[vllm("prompt_tokens_total")] == 3 * len("To be")

    run(main())


def test_ended_requests_are_counted_by_their_end_with_their_times() -> None:
    async def main() -> None:
        service, measured = ScriptedService(), Measurements()
        ended: dict[str, asyncio.Event] = {}
        topics = Topics("home")

        def send(message: Outgoing) -> None:
            for request_id, event in ended.items():
                if message.topic == topics.response("a", request_id):
                    event.set()

        manager = RequestManager(
            service, MqttReplySink(topics, send),
            admission=AdmissionControl(num_slots=2, max_queued=4), journal=NoJournal(),
            queue=LocalQueue(lambda claim: manager.start(claim)),  # noqa: PLW0108
            counters=Counters(), measurements=measured,
        )  # fmt: skip

        def ask(request_id: str, prompt: str) -> None:
            ended[request_id] = asyncio.Event()
            ticket = RequestTicket("a", request_id, "completion", topics.response("a", request_id))
            manager.accept(RequestRecord(ticket, Request("a", request_id, "completion", prompt)))

        async with asyncio.TaskGroup() as group:
            running = group.create_task(manager.run())
            await asyncio.sleep(0)
            service.hold("long")
            service.errors["bad"] = RuntimeError("broken")
            ask("1", "good")
            ask("2", "bad")
            ask("3", "long")
            await ended["1"].wait()
            await ended["2"].wait()
            await service.begun(3)
            manager.cancel("3", "a")
            await ended["3"].wait()
            running.cancel()
        seen = samples(measured)
        ends = {"stop": 1, "error": 1, "abort": 1, "length": 0}
        for reason, number in ends.items():
            assert seen[vllm("request_success_total", finished_reason=reason)] == number
        assert seen[vllm("e2e_request_latency_seconds_count")] == 1

    run(main())


def test_deliveries_are_timed_from_acceptance_and_from_each_other() -> None:
    measured = Measurements()
    watch = measured.watch(10.0)
    watch.deliver(1, 12.0)
    watch.deliver(4, 12.5)
    watch.deliver(2, 13.5)
    seen = samples(measured)
    assert seen[vllm("time_to_first_token_seconds_sum")] == 2.0
    assert seen[vllm("inter_token_latency_seconds_sum")] == 1.5
    assert seen[vllm("inter_token_latency_seconds_count")] == 2
    assert seen[vllm("generation_tokens_total")] == 7


def test_state_is_shown() -> None:
    seen = samples(Measurements())
    assert seen[vllm("num_requests_running")] == 1
    assert seen[vllm("num_requests_waiting")] == 2
    assert seen[vllm("kv_cache_usage_perc")] == 0.25
    assert seen[vllm("prefix_cache_hits_total")] == 4
    assert seen[own("links", state="linked")] == 1
    assert seen[own("links", state="missing")] == 1
    assert seen[own("drafter_rtt_seconds", drafter="d1")] == 0.002
    assert own("drafter_token_seconds", drafter="d1") not in seen
    assert seen[own("events_total", event="refused", kind="overloaded")] == 3
    assert seen[own("events_total", event="lost_links", kind="")] == 2


def test_drafters_beyond_the_bound_are_counted_together() -> None:
    measured = Measurements()
    for number in range(MAX_DRAFTERS + 5):
        measured.count_round(2, 1, {f"d{number}": 2}, {f"d{number}": 1})
    assert len(measured.proposed) == MAX_DRAFTERS + 1
    assert measured.proposed["other"] == 10
    assert measured.accepted["other"] == 5


@pytest.mark.parametrize("is_used", [False, True])
def test_openmetrics_readers_accept_it_too(is_used: bool) -> None:
    measured = Measurements()
    if is_used:
        measured.count_round(2, 2, {'a"b\n': 2}, {})
        measured.count_times(plan=0.1, draft=0.2, verify=0.3)
        measured.gamma.observe(3)
    text, content_type = render(
        target_metrics(measured, STATE, "1.0"), "application/openmetrics-text; version=1.0.0"
    )
    assert content_type.startswith("application/openmetrics-text")
    assert list(read_openmetrics(text.decode()))


def test_metric_without_values_is_still_named() -> None:
    text, _ = render([Family("counter", "edgecosine_x", "None yet.", [])])
    assert b"# TYPE edgecosine_x_total counter" in text


def test_committee_shows_its_members() -> None:
    member = {"weight": 0.5, "nodes": ["a", "b"], "round_ms": 2.0, "slowest": 3}
    draws = {
        "proved_at_once": 0.98,
        "dense_rows": 1,
        "judged_again": 2,
        "bytes_per_position": 136.0,
    }
    found = samples(Measurements(), {**STATE, "members": {"legal": member}, **draws})
    of_legal = "[('member', 'legal')]"
    assert found[f"edgecosine_member_weight{of_legal}"] == 0.5
    assert found[f"edgecosine_member_nodes{of_legal}"] == 2
    assert found[f"edgecosine_member_round_seconds{of_legal}"] == 0.002
    assert found[f"edgecosine_member_slowest_rounds_total{of_legal}"] == 3
    assert found["edgecosine_committee_proved_at_once"] == 0.98
    assert found["edgecosine_committee_dense_rows_total"] == 1
    assert not any("committee" in name for name in samples(Measurements()))
