"""Validates the simulation by the same loads on a real cluster and on a simulated one, whose costs
are measured in the same run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgecosine.lab.bench.cells import LAN
from edgecosine.lab.bench.overhead import overheads_s
from edgecosine.lab.cluster import LabCluster, LabPlan, NetworkKind, lab_cluster
from edgecosine.lab.figures import Notify
from edgecosine.lab.load_generator import closed_loop, make_jobs
from edgecosine.lab.measured_requests import Load, MeasuredAnswer
from edgecosine.lab.simulation.cluster import Outcome, Scenario, SimulatedLoad, simulate
from edgecosine.lab.simulation.costs import Costs
from edgecosine.lab.simulation.measure_costs import EngineCosts
from edgecosine.lab.simulation.processors import ProcessorTimes, read_processor_times
from edgecosine.lab.simulation.texts import Texts

POLICIES = ("target-alone", "specedge", "edgecosine")
SESSIONS = (1, 4, 8)
DRAFTERS = (("generalist",), ("python", "manual", "legal", "home"))
_SLOTS = 16
_CALIBRATION_TEXT = 40
"""The first prompt of the calibration loads, whose prompts are not used for validation."""


@dataclass(frozen=True, slots=True)
class ValidationSettings:
    """Loads of a validation; core lists have the form of `edgecosine node --cores`."""

    ballast: int
    repeats: int = 3
    max_tokens: int = 128
    network: NetworkKind = "auto"
    target_cores: str = ""
    drafter_cores: str = ""
    drafters: tuple[tuple[str, ...], ...] = DRAFTERS
    sessions: tuple[int, ...] = SESSIONS


@dataclass(frozen=True, slots=True)
class CalibratedCosts:
    """Costs with those of one cluster's loops, links and other processes."""

    costs: Costs
    one_row_s: float
    """Seconds of a pass of one row on the cluster's target."""


async def validate(
    settings: ValidationSettings, engines: EngineCosts, texts: Texts, notify: Notify
) -> tuple[list[dict[str, Any]], Costs]:
    """Returns a record for each load, and the costs of the first cluster, for simulations without a
    lab.

    Raises LabError and the errors of `lab_cluster`.
    """
    records: list[dict[str, Any]] = []
    first: Costs | None = None
    for drafters in settings.drafters:
        loads = _loads(settings, first is not None)
        async with lab_cluster(_plan(settings, drafters), notify) as cluster:
            calibration = await calibrate(cluster, engines, notify)
            measured = [await _run(cluster, load, notify) for load in loads]
        scenario = Scenario(drafters, is_core_shared=True, slots=_SLOTS)
        simulated = simulate(scenario, [*_warm_up(), *loads], calibration.costs, texts)
        simulated = simulated[len(_warm_up()) :]
        for load, (real, waited), outcome in zip(loads, measured, simulated, strict=True):
            records.append({**_record(drafters, load, real, outcome), "target_waited": waited})
        first = first or calibration.costs
    assert first is not None
    return _medians(records), first


def _loads(settings: ValidationSettings, is_known: bool) -> list[SimulatedLoad]:
    policies = POLICIES[1:] if is_known else POLICIES
    return [
        SimulatedLoad(policy, sessions, max(4, 2 * sessions), settings.max_tokens)
        for _ in range(settings.repeats)
        for sessions in settings.sessions
        for policy in policies
    ]


def _warm_up() -> list[SimulatedLoad]:
    """The loads of the calibration."""
    text, tokens = _CALIBRATION_TEXT, 96
    return [
        SimulatedLoad("edgecosine", 1, 2, tokens, text),
        SimulatedLoad("target-alone", 4, 8, tokens, text),
        SimulatedLoad("target-alone", 1, 2, tokens, text),
        SimulatedLoad("specedge", 1, 4, tokens, text),
    ]


def _plan(settings: ValidationSettings, drafters: tuple[str, ...]) -> LabPlan:
    slots = ("--slots", str(_SLOTS))
    return LabPlan(
        drafters=drafters,
        ballast=settings.ballast,
        conditions=LAN,
        network=settings.network,
        target_cores=settings.target_cores,
        drafter_cores=settings.drafter_cores,
        target_options=(*slots, "--max-sessions", str(_SLOTS)),
        drafter_options=slots,
    )


async def calibrate(cluster: LabCluster, engines: EngineCosts, notify: Notify) -> CalibratedCosts:
    """Measure the costs of loops, links, broker and clients under separate loads."""
    notify("measuring the costs of event loops, links and broker")
    warm, many, lone, paired = _warm_up()
    await _ask(cluster, warm, is_traced=False)
    start = read_processor_times(cluster)
    load = await _ask(cluster, many, is_traced=False)
    alone = read_processor_times(cluster).since(start)
    rounds = _rounds(load)
    round_s, delivery_s = alone.target_loop_s / rounds, alone.delivery_s / rounds
    carried_s = alone.traffic_s / rounds
    traced = await _ask(cluster, lone, is_traced=True)
    overhead_s = statistics.median(
        s for measured in traced.answers for s in overheads_s(measured.rounds)
    )
    one_row_s = statistics.median(_passes(traced))
    start = read_processor_times(cluster)
    load = await _ask(cluster, paired, is_traced=True)
    spent = read_processor_times(cluster).since(start)
    costs = Costs(
        pass_s=engines.pass_s,
        session_s=engines.session_s,
        step_s=engines.step_s,
        work_s=engines.work_s,
        plan_s=engines.plan_s,
        round_s=round_s,
        hop_s=max(0.0, overhead_s - round_s),
        delivery_s=delivery_s + carried_s,
        between_s=statistics.median(map(_between_s, traced.answers)),
        one_way_s=await _rtt_s(cluster) / 2,
    )
    costs = _with_links(costs, load, spent, carried_s)
    return CalibratedCosts(costs, one_row_s)


def _with_links(costs: Costs, load: Load, spent: ProcessorTimes, carried_s: float) -> Costs:
    """Add the costs of messages, from the times that remain after those of rounds."""
    rounds = _rounds(load)
    asks = sum(len(each["drafts"]) for measured in load.answers for each in measured.rounds)
    messages = max(1, 2 * asks)
    return replace(
        costs,
        message_s=max(0.0, spent.target_loop_s - rounds * costs.round_s) / messages,
        request_s=spent.drafter_loops_s / max(1, asks),
        carriage_s=max(0.0, spent.traffic_s - rounds * carried_s) / messages,
    )


def _rounds(load: Load) -> int:
    """Number of rounds, including prefills."""
    return sum(measured.num_rounds + 1 for measured in load.answers)


def _passes(load: Load) -> list[float]:
    return [each["pass_s"] for measured in load.answers for each in measured.rounds[1:]]


def _between_s(measured: MeasuredAnswer) -> float:
    """Seconds that a client waits beyond its session."""
    return max(0.0, measured.elapsed_s - float(measured.rounds[-1]["verified_s"]))


async def _ask(cluster: LabCluster, load: SimulatedLoad, *, is_traced: bool) -> Load:
    jobs = make_jobs(
        load.requests, offset=load.first_text, policy=load.policy, temperature=0.0,
        max_tokens=load.max_tokens, trace=is_traced,
    )  # fmt: skip
    return await closed_loop(cluster.client, jobs, load.sessions)


async def _run(cluster: LabCluster, load: SimulatedLoad, notify: Notify) -> tuple[Load, float]:
    """Run a load on the real cluster.

    Returns the result, and the share of time in which the target waited for its processor; a third
    or more indicates other load on this machine.
    """
    start = read_processor_times(cluster)
    answered = await _ask(cluster, load, is_traced=False)
    waited = read_processor_times(cluster).since(start).target_waited_s / answered.elapsed_s
    notify(
        f"measured: {load.policy}, {load.sessions} sessions, {len(cluster.drafters)} drafters: "
        f"{answered.tokens_per_s:.0f} tokens/s, target waited for its processor {waited:.2f}"
    )
    return answered, waited


async def _rtt_s(cluster: LabCluster) -> float:
    views = await cluster.client.nodes()
    state = next(v.state for v in views.values() if v.state.get("role") == "target")
    return statistics.median(float(d["rtt_ms"]) for d in state["drafters"].values()) / 1e3


def _record(
    drafters: Sequence[str], load: SimulatedLoad, real: Load, outcome: Outcome
) -> dict[str, Any]:
    return {
        "kind": "validation",
        "drafters": len(drafters),
        **asdict(load),
        "measured_tokens_per_s": real.tokens_per_s,
        "simulated_tokens_per_s": outcome.tokens_per_s,
        "measured_acceptance": real.acceptance_length,
        "simulated_acceptance": outcome.acceptance_length,
        "ratio": outcome.tokens_per_s / real.tokens_per_s,
    }


def _medians(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record for each load, with the medians of its repetitions."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        key = (record["drafters"], record["policy"], record["sessions"])
        groups.setdefault(key, []).append(record)
    merged = []
    for group in groups.values():
        figures = {
            name: statistics.median(record[name] for record in group)
            for name in group[0]
            if isinstance(group[0][name], float)
        }
        ratio = figures["simulated_tokens_per_s"] / figures["measured_tokens_per_s"]
        merged.append({**group[0], **figures, "ratio": ratio, "repeats": len(group)})
    return merged
