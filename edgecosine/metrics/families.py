"""A target's metrics as values: vLLM's names for what vLLM measures too, ours for the rest.

vLLM's meaning is kept: a time per request counts once per choice, and the inter-token latency is
the gap between two deliveries, which hold several tokens under speculation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgecosine.metrics.histogram import Histogram
from edgecosine.metrics.measurements import Measurements
from edgecosine.protocol.api.result import NodeState

Kind = Literal["counter", "gauge", "histogram"]
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Family:
    """A metric and its values, which have the same label names. Counters get `_total` appended."""

    kind: Kind
    name: str
    help: str
    values: Sequence[tuple[Labels, float | Histogram]]


def target_metrics(measured: Measurements, state: NodeState, version: str) -> list[Family]:
    """All metrics of a target, from its measurements and the state that it publishes."""
    labels = {"model_name": str(state["model"]), "engine": "0"}
    found = [
        Family(kind, f"vllm:{name}", text, [({**labels, **more}, value) for more, value in values])
        for kind, name, text, values in _vllm(measured, state)
    ]
    return found + [
        Family(kind, f"edgecosine_{name}", text, values)
        for kind, name, text, values in _own(measured, state, version)
    ]


_Row = tuple[Kind, str, str, Sequence[tuple[Labels, float | Histogram]]]


def _vllm(measured: Measurements, state: NodeState) -> Iterator[_Row]:
    cache = state["kv_cache"]
    for name, text, gauge in (
        ("num_requests_running", "Requests that have a session.", state["running"]),
        ("num_requests_waiting", "Requests in the queue.", state["queued"]),
        ("kv_cache_usage_perc", "Used share of the KV cache, 0 to 1.", cache["use"]),
    ):
        yield "gauge", name, text, [({}, gauge)]
    for name, text, count in (
        ("prefix_cache_queries", "Tokens looked up in the KV cache.", cache["looked_up"]),
        ("prefix_cache_hits", "Tokens found in the KV cache.", cache["found"]),
        ("prompt_tokens", "Prompt tokens of sessions.", measured.num_prompt_tokens),
        ("generation_tokens", "Generated tokens.", measured.num_generated_tokens),
        ("spec_decode_num_drafts", "Verified token trees.", measured.num_drafts),
        ("spec_decode_num_draft_tokens", "Verified draft tokens.", measured.num_draft_tokens),
        (
            "spec_decode_num_accepted_tokens", "Accepted draft tokens.",
            sum(measured.accepted_at),
        ),
    ):  # fmt: skip
        yield "counter", name, text, [({}, count)]
    positions = [
        ({"position": str(position)}, float(number))
        for position, number in enumerate(measured.accepted_at)
    ]
    name = "spec_decode_num_accepted_tokens_per_pos"
    yield "counter", name, "Accepted draft tokens by position in their round.", positions
    reasons = ("stop", "length", "abort", "error", *measured.finished)
    ends = [
        ({"finished_reason": reason}, float(measured.finished[reason]))
        for reason in dict.fromkeys(reasons)
    ]
    yield "counter", "request_success", "Ended choices by finish reason.", ends
    for name, text, histogram in (
        ("time_to_first_token_seconds", "Acceptance to first tokens.", measured.first_token_s),
        ("inter_token_latency_seconds", "Gap between deliveries of tokens.", measured.gap_s),
        (
            "request_time_per_output_token_seconds",
            "Decode time by tokens after the first, mean of a choice.", measured.token_s,
        ),
        ("e2e_request_latency_seconds", "Acceptance to answer.", measured.request_s),
        ("request_queue_time_seconds", "Acceptance to session.", measured.queue_s),
        ("request_prefill_time_seconds", "Session's start to first token.", measured.prefill_s),
        ("request_decode_time_seconds", "First token to last.", measured.decode_s),
        ("request_inference_time_seconds", "Prefill and decode.", measured.inference_s),
    ):  # fmt: skip
        yield "histogram", name, text, [({}, histogram)]


def _own(measured: Measurements, state: NodeState, version: str) -> Iterator[_Row]:
    drafters: Mapping[str, Mapping[str, Any]] = state["drafters"]
    outcomes = [
        ({"drafter": drafter, "outcome": outcome}, float(number))
        for outcome, numbers in (("accepted", measured.accepted), ("rejected", measured.rejected()))
        for drafter, number in sorted(numbers.items())
    ]
    yield (
        "counter", "draft_tokens", "Verified draft tokens by drafter; those of two count for both.",
        outcomes,
    )  # fmt: skip
    parts = [({"part": part}, times) for part, times in measured.round_s.items()]
    yield "histogram", "round_seconds", "Rounds by part: plan, draft, verify.", parts
    yield (
        "histogram", "plan_gamma", "Draft length of each round's plan; 0 without drafters.",
        [({}, measured.gamma)],
    )  # fmt: skip
    links = {"linked": len(drafters), "missing": len(state["not_linked"])}
    yield (
        "gauge", "links", "Drafters that are linked, and peers that should be and are not.",
        [({"state": name}, float(number)) for name, number in links.items()],
    )  # fmt: skip
    for name, text, key, unit in (
        ("drafter_rtt_seconds", "Round-trip time of a link.", "rtt_ms", 1e-3),
        ("drafter_token_seconds", "Time per draft token.", "token_ms", 1e-3),
        ("drafter_acceptance", "Learned acceptance rate.", "acceptance", 1.0),
    ):
        yield (
            "gauge",
            name,
            text,
            [
                ({"drafter": drafter}, facts[key] * unit)
                for drafter, facts in drafters.items()
                if facts[key] is not None
            ],
        )
    for name, text, key in (
        ("drafter_drafted_tokens", "Draft tokens that arrived in time.", "drafted"),
        ("drafter_late_drafts", "Drafts that missed their deadline.", "late"),
    ):
        yield (
            "counter",
            name,
            text,
            [({"drafter": drafter}, facts[key]) for drafter, facts in drafters.items()],
        )
    yield from _committee(state)
    yield "counter", "engine_busy_seconds", "Time in forward passes.", [({}, state["busy_s"])]
    yield "counter", "engine_idle_seconds", "Time between passes.", [({}, state["idle_s"])]
    yield (
        "counter", "events", "Refusals, losses and repetitions, as in the node's state.",
        list(_events(state["counters"])),
    )  # fmt: skip
    facts = {key: str(state[key]) for key in ("exactness", "dtype", "quantization")}
    yield "gauge", "exactness_info", "The guarantee of the target's texts.", [(facts, 1.0)]
    yield "gauge", "build_info", "The version of EdgeCoSine.", [({"version": version}, 1.0)]


def _committee(state: NodeState) -> Iterator[_Row]:
    """Metrics of a target that leads a committee; none for other targets."""
    members: Mapping[str, Mapping[str, Any]] = state.get("members", {})
    if not members:
        return
    for kind, name, text, key, unit in _MEMBERS:
        values = [({"member": member}, facts[key] * unit) for member, facts in members.items()]
        yield kind, name, text, values
    nodes = [({"member": member}, float(len(facts["nodes"]))) for member, facts in members.items()]
    yield "gauge", "member_nodes", "Linked nodes of a committee's member.", nodes
    for kind, name, text, key in _DRAWS:
        yield kind, name, text, [({}, float(state[key]))]


_MEMBERS: Sequence[tuple[Kind, str, str, str, float]] = (
    ("gauge", "member_weight", "Weight of a committee's member.", "weight", 1.0),
    ("gauge", "member_round_seconds", "Mean time of a member's judgements.", "round_ms", 1e-3),
    ("counter", "member_slowest_rounds", "Rounds in which it was the slowest.", "slowest", 1.0),
)
_DRAWS: Sequence[tuple[Kind, str, str, str]] = (
    ("gauge", "committee_proved_at_once", "Share of draws proven by the first lists.",
     "proved_at_once"),
    ("counter", "committee_dense_rows", "Nodes that needed whole rows.", "dense_rows"),
    ("counter", "committee_judged_again", "Works that were judged again.", "judged_again"),
    ("gauge", "committee_position_bytes", "Bytes that a member sends for one row.",
     "bytes_per_position"),
)  # fmt: skip


def _events(counters: Mapping[str, int | Mapping[str, int]]) -> Iterator[tuple[Labels, float]]:
    for event, counts in counters.items():
        kinds = counts if isinstance(counts, Mapping) else {"": counts}
        for kind, number in kinds.items():
            yield {"event": event, "kind": kind}, float(number)
