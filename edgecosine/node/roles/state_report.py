"""The JSON state that a node publishes on its state topic."""

from __future__ import annotations

from typing import Any

from edgecosine.balance.planner import Planner
from edgecosine.counters import Counters
from edgecosine.discovery.events import Explanation
from edgecosine.engine.options import Loaded
from edgecosine.metrics.measurements import Measurements
from edgecosine.node.drafter.draft_worker import DraftWorker
from edgecosine.node.durability.journal import DiskJournal
from edgecosine.node.gateway.gateway import Gateway
from edgecosine.node.links.peers import Peers
from edgecosine.node.member.member_worker import MemberWorker
from edgecosine.node.roles.committee_links import CommitteeLinks
from edgecosine.node.target.text_service import TextService
from edgecosine.node.target.verifier import Verifier
from edgecosine.protocol.api.result import NodeState


def target_state(
    loaded: Loaded,
    identity: str,
    service: TextService,
    verifier: Verifier,
    planner: Planner,
    peers: Peers,
    gateway: Gateway,
    journal: DiskJournal | None,
    counters: Counters,
    measured: Measurements,
    committee: CommitteeLinks | None,
) -> NodeState:
    """The state of a target."""
    rounds = max(1, service.num_rounds)
    admission, kv = gateway.admission, verifier.kv_use
    return {
        "role": "target",
        "model": service.info["models"][0],
        "quantization": loaded.quantization,
        "exactness": loaded.exactness,
        "dtype": loaded.dtype,
        "identity": identity,
        "beside": sorted(gateway.queue.active_peers),
        "parameters": loaded.num_parameters,
        "answers": service.num_answers,
        "tokens": measured.num_generated_tokens,
        "rounds": measured.num_rounds,
        "draft_tokens": measured.num_draft_tokens,
        "accepted_tokens": sum(measured.accepted_at),
        "acceptance": round(service.num_accepted / rounds, 2),
        "ahead_hit_rate": round(service.num_ahead / service.num_speculative, 2)
        if service.num_speculative
        else None,
        "tokens_per_s": round(service.num_tokens / max(verifier.busy_s, 1e-9), 1)
        if verifier.busy_s
        else None,
        "busy_s": round(verifier.busy_s, 3),
        "idle_s": round(verifier.idle_s, 3),
        "plan": planner.last_reason,
        "running": admission.num_running,
        "queued": admission.num_queued,
        "is_full": admission.is_full,
        "is_congested": gateway.client.is_congested,
        "counters": _counts(
            counters, late_drafts=service.num_late, asked_again=planner.statistics.num_retries
        ),
        "kv_cache": {
            "dtype": loaded.kv_dtype,
            "use": round(kv.num_used / kv.capacity, 4),
            "looked_up": kv.num_looked_up,
            "found": kv.num_found,
        },
        "journal": "off" if journal is None else journal.failure or "ok",
        "drafters": {
            node_id: {
                "rtt_ms": round(link.rtt_s * 1e3, 2),
                **_drafter_view(planner, node_id),
                "proposed": measured.proposed[node_id],
                "accepted": measured.accepted[node_id],
            }
            for node_id, link in sorted(peers.links.items())
            if link.peer.role == "drafter"
        },
        **committee_view(committee),
        "not_linked": [f"{e.peer}: {e.reason}" for e in peers.explain() if _is_missing(e)],
    }


def committee_view(links: CommitteeLinks | None) -> dict[str, Any]:
    """The part of a target's state that describes its committee; empty without a committee."""
    if links is None:
        return {}
    totals = links.committee.totals
    drawn, rows = max(1, totals.num_drawn), max(1, totals.num_rows)
    return {
        "members": links.view(),
        "exactness": links.exactness,
        "away": links.committee.away,
        "proved_at_once": round(totals.num_proved_at_once / drawn, 4),
        "dense_rows": totals.num_dense,
        "judged_again": totals.num_judged_again,
        "bytes_per_position": round(totals.num_bytes / rows, 1),
    }


def _is_missing(peer: Explanation) -> bool:
    """Whether a peer should be linked and is not; nodes of other clusters should not be."""
    return peer.state not in ("linked", "left out") and not peer.is_foreign


def _counts(counters: Counters, **more: int) -> dict[str, Any]:
    """All counters, with those kept by other objects added if not 0."""
    return {**counters.view(), **{name: number for name, number in more.items() if number}}


def _drafter_view(planner: Planner, node_id: str) -> dict[str, Any]:
    state = planner.statistics.drafter(node_id)
    return {
        "acceptance": round(state.record.prior, 3),
        "token_ms": None if state.speed.token_s is None else round(state.speed.token_s * 1e3, 2),
        "drafted": state.num_drafted,
        "late": state.num_late,
    }


def member_state(
    loaded: Loaded, worker: MemberWorker, member: str, peers: Peers, counters: Counters
) -> NodeState:
    """The state of a member of a committee."""
    rtts = [link.rtt_s for link in peers.links.values()]
    return {
        "role": "member",
        "model": loaded.name,
        "quantization": loaded.quantization,
        "exactness": loaded.exactness,
        "dtype": loaded.dtype,
        "member": member,
        "rtt_ms": round(min(rtts) * 1e3, 2) if rtts else None,
        "tokens_per_s": round(worker.num_judged / worker.busy_s, 1) if worker.busy_s else None,
        "judged": worker.num_judged,
        "reveals": worker.num_reveals,
        "targets": sorted(peers.links),
        "counters": _counts(counters),
    }


def drafter_state(
    loaded: Loaded, worker: DraftWorker, peers: Peers, counters: Counters
) -> NodeState:
    """The state of a drafter."""
    rtts = [link.rtt_s for link in peers.links.values()]
    return {
        "role": "drafter",
        "model": loaded.name,
        "quantization": loaded.quantization,
        "rtt_ms": round(min(rtts) * 1e3, 2) if rtts else None,
        "tokens_per_s": round(worker.num_tokens / worker.busy_s, 1) if worker.busy_s else None,
        "drafted": worker.num_tokens,
        "targets": sorted(peers.links),
        "counters": _counts(counters, stale_drafts=worker.num_stale),
    }
