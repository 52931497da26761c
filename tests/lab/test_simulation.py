"""The simulation: virtual time that only goes on, work that is conserved, and loads whose answers
are those of the recorded target whatever is simulated around it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecosine import zoo
from edgecosine.balance.policy import POLICIES
from edgecosine.cli import main
from edgecosine.errors import LabError
from edgecosine.lab.simulation import comparison
from edgecosine.lab.simulation.cluster import Outcome, Scenario, SimulatedLoad, simulate
from edgecosine.lab.simulation.costs import Costs
from edgecosine.lab.simulation.curves import sweep_curves
from edgecosine.lab.simulation.run_simulation import costs_record, read_costs
from edgecosine.lab.simulation.sweep import SweepCell, cells, run_cell, sweep_figures
from edgecosine.lab.simulation.texts import Texts, load_texts
from edgecosine.lab.simulation.virtual_time import Core, Strand, VirtualLoop

TEXTS = load_texts()
COSTS = Costs(
    pass_s={1: 0.010, 8: 0.011, 16: 0.014, 64: 0.030},
    step_s={1: 0.0002, 16: 0.0006, 48: 0.0015},
    session_s=0.0001,
    work_s=0.0001,
    round_s=0.0004,
    message_s=0.0002,
    request_s=0.0003,
    hop_s=0.0002,
    delivery_s=0.0003,
    carriage_s=0.0001,
    between_s=0.004,
    one_way_s=0.0002,
)
MODELS = TEXTS.drafters
few = settings(max_examples=12)


def play(
    policy: str,
    sessions: int,
    drafters: tuple[str, ...] = (),
    *,
    costs: Costs = COSTS,
    texts: Texts = TEXTS,
    is_core_shared: bool = False,
    targets: int = 1,
    max_tokens: int = 64,
) -> Outcome:
    load = SimulatedLoad(policy, sessions, 2 * sessions, max_tokens)
    scenario = Scenario(drafters, is_core_shared=is_core_shared, targets=targets)
    return simulate(scenario, [load], costs, texts)[0]


def without_real_time(outcome: Outcome) -> Outcome:
    return replace(outcome, decisions={})


@given(
    policy=st.sampled_from(sorted(POLICIES)),
    sessions=st.integers(1, 5),
    drafters=st.lists(st.sampled_from(MODELS), max_size=4),
    is_core_shared=st.booleans(),
    max_tokens=st.integers(1, 40),
)
@few
def test_every_request_ends_with_the_targets_own_text(
    policy: str, sessions: int, drafters: list[str], is_core_shared: bool, max_tokens: int
) -> None:
    outcome = play(
        policy, sessions, tuple(drafters), is_core_shared=is_core_shared, max_tokens=max_tokens
    )
    turns = TEXTS.turns()
    assert outcome.answers == {
        number: tuple(TEXTS.answer(turns[number], max_tokens)) for number in range(2 * sessions)
    }
    assert outcome.num_tokens == 2 * sessions * max_tokens
    assert outcome.num_rounds <= outcome.num_tokens
    assert outcome.num_rows >= outcome.num_tokens - outcome.num_accepted
    assert outcome.pass_s <= outcome.elapsed_s


@pytest.mark.parametrize("policy", ["target-alone", "cosine-paper", "edgecosine"])
def test_simulation_is_deterministic(policy: str) -> None:
    first, again = (play(policy, 6, MODELS, is_core_shared=True) for _ in range(2))
    assert without_real_time(first) == without_real_time(again)


def test_loads_follow_each_other_on_one_cluster() -> None:
    load = SimulatedLoad("edgecosine", 2, 4, 32)
    first, second = simulate(Scenario(MODELS), [load, load], COSTS, TEXTS)
    [alone] = simulate(Scenario(MODELS), [load], COSTS, TEXTS)
    assert without_real_time(first) == without_real_time(alone)
    assert second.answers == first.answers


def test_drafters_make_one_request_faster() -> None:
    alone, helped = play("target-alone", 1), play("edgecosine", 1, MODELS)
    assert helped.tokens_per_s > 1.5 * alone.tokens_per_s


def test_quick_drafter_is_used_although_some_texts_repeat_themselves() -> None:
    """The target's own drafts are nearly free, and in texts that loop quicker than any drafter."""
    alone, drafted = (
        run_cell(SweepCell("here", drafters, 1), COSTS, TEXTS, seed=0) for drafters in (0, 1)
    )
    assert drafted["tokens_per_s"] > 2.5 * alone["tokens_per_s"]
    assert drafted["messages_per_round"] > 0.5


def test_round_costs_the_same_with_ten_times_as_many_drafters() -> None:
    few, many = (play("edgecosine", 3, number * MODELS) for number in (4, 40))
    assert few.num_compared > few.num_rounds
    for counted in ("num_compared", "num_messages"):
        per_round = [getattr(outcome, counted) / outcome.num_rounds for outcome in (few, many)]
        assert per_round[1] < 1.3 * per_round[0]


@pytest.mark.parametrize("sessions", [1, 4])
def test_drafter_that_is_always_wrong_costs_little(sessions: int) -> None:
    wrong = replace(TEXTS, guesses=(TEXTS.guesses + np.uint16(1)) % np.uint16(4000))
    alone = play("target-alone", sessions)
    hindered = play("edgecosine", sessions, MODELS[:1], texts=wrong)
    assert hindered.tokens_per_s >= 0.93 * alone.tokens_per_s


@pytest.mark.parametrize(
    ("policy", "sessions"),
    [
        *itertools.product(["target-alone", "edgecosine"], [1, 2]),
        pytest.param("edgecosine", 6, marks=pytest.mark.soak),
        ("specedge", 1),
        pytest.param("specedge", 6, marks=pytest.mark.soak),
    ],
)
def test_costlier_passes_never_raise_throughput(policy: str, sessions: int) -> None:
    speeds = []
    for factor in (1.0, 2.0, 4.0):
        pass_s = {rows: factor * seconds for rows, seconds in COSTS.pass_s.items()}
        dearer = replace(COSTS, pass_s=pass_s, session_s=factor * COSTS.session_s)
        outcome = play(policy, sessions, MODELS, costs=dearer)
        speeds.append(outcome.tokens_per_s)
    assert speeds == sorted(speeds, reverse=True)


def test_two_targets_serve_twice_the_load_in_the_same_time() -> None:
    costs = replace(COSTS, between_s=0.0)
    one = play("target-alone", 3, costs=costs)
    two = play("target-alone", 6, costs=costs, targets=2)
    assert two.elapsed_s == pytest.approx(one.elapsed_s)
    assert two.num_passes == 2 * one.num_passes


def test_longer_answers_than_were_recorded_are_refused() -> None:
    with pytest.raises(LabError, match="at most are recorded"):
        play("target-alone", 1, max_tokens=TEXTS.longest_answer)


def changing_domains(texts: Texts, segment: int = 24) -> Texts:
    """Answers that change their domain every `segment` tokens, pieced together from the recorded
    ones, with the guesses that the drafters made in the pieces' own texts."""
    places = np.arange(texts.longest_answer)
    numbers = np.arange(len(texts.lists))[:, None]
    source = (numbers + places // segment * (len(texts.lists) // 4)) % len(texts.lists)
    return replace(
        texts,
        answers=texts.answers[source, places],
        guesses=texts.guesses[:, source, places],
        shares=texts.shares[:, source, places],
    )


def test_specialists_together_follow_a_text_that_changes_its_domain() -> None:
    """On accelerators whose drafters need 0.15 of a pass for a step, after the first requests."""
    costs = replace(COSTS, pass_s={1: 0.04, 256: 0.04}, step_s={1: 0.006, 64: 0.006})
    scenario = Scenario(tuple(dict.fromkeys(TEXTS.domains)), has_device=True)
    texts = changing_domains(TEXTS)

    def second_load(policy: str) -> Outcome:
        loads = [SimulatedLoad(policy, 1, 8, 80, first) for first in (0, 16)]
        return simulate(scenario, loads, costs, texts)[1]

    team = second_load("edgecosine")
    one = second_load("edgecosine-without-cooperation")
    assert team.tokens_per_s > 1.2 * one.tokens_per_s
    assert team.answers == one.answers


def test_specialists_are_best_in_their_domains() -> None:
    hits = TEXTS.guesses[:, :, :, 0] == TEXTS.answers[None]
    for domain, best in zoo.best_drafters().items():
        here = [number for number, name in enumerate(TEXTS.domains) if name == domain]
        shares = hits[:, here].mean(axis=(1, 2))
        assert TEXTS.drafters[int(shares.argmax())] == best


def test_draft_on_a_recorded_path_is_the_recorded_draft() -> None:
    tokens, start = TEXTS.lists[3], len(TEXTS.prompts[3])
    for length, below in ((start, 0), (start + 9, 4)):
        path = tokens[length : length + below]
        said = TEXTS.guess(1, 3, tokens[:length], path)
        assert said.tokens == TEXTS.guesses[1, 3, length + below - start].tolist()
        assert said.confidences == sorted(said.confidences, reverse=True)
    wrong = [tokens[start] + 1]
    assert TEXTS.guess(1, 3, tokens[:start], wrong) == TEXTS.guess(1, 3, tokens[:start], wrong)


@given(jobs=st.lists(st.tuples(st.floats(0, 10), st.floats(0.001, 5)), min_size=1, max_size=8))
@few
def test_core_runs_each_job_for_its_full_time(jobs: list[tuple[float, float]]) -> None:
    loop = VirtualLoop()
    core, ends = Core(loop), dict[int, float]()

    async def job(number: int, start_s: float, seconds: float) -> None:
        await asyncio.sleep(start_s)
        await core.spend(seconds)
        ends[number] = loop.time()

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            for number, (start_s, seconds) in enumerate(jobs):
                group.create_task(job(number, start_s, seconds))

    loop.complete(run())
    assert core.busy_s == pytest.approx(sum(seconds for _, seconds in jobs))
    for number, (start_s, seconds) in enumerate(jobs):
        rivals = sum(other for n, (_, other) in enumerate(jobs) if n != number)
        lasted_s = ends[number] - start_s
        assert seconds - 1e-6 <= lasted_s <= seconds + rivals + 1e-6


def test_strand_runs_callbacks_one_by_one_while_others_continue() -> None:
    loop = VirtualLoop()
    busy, free = Strand(loop, "busy"), Strand(loop, "free")
    seen: list[tuple[str, float]] = []

    async def work(strand: Strand, number: int) -> None:
        seen.append((f"{strand.name} {number}", loop.time()))
        strand.charge(1.0)
        assert loop.time() == seen[-1][1] + 1.0

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(2):
                for strand in (busy, free):
                    group.create_task(work(strand, number), context=strand.context)

    loop.complete(run())
    assert seen == [("busy 0", 0.0), ("free 0", 0.0), ("busy 1", 1.0), ("free 1", 1.0)]


def test_virtual_time_advances_to_the_next_timeout() -> None:
    loop = VirtualLoop()

    async def run() -> float:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3.0):
                await asyncio.sleep(1000.0)
        with pytest.raises(LabError, match="too late"):
            loop.at(loop.time() - 1.0, lambda: None)
        return loop.time()

    assert loop.complete(run()) == 3.0


def test_simulation_without_events_is_an_error() -> None:
    async def run() -> None:
        await asyncio.Event().wait()

    with pytest.raises(LabError, match="never happens"):
        VirtualLoop().complete(run())


def test_simulation_does_not_change_the_loop_that_calls_it() -> None:
    async def run() -> None:
        around = asyncio.get_running_loop()
        assert play("edgecosine", 1, MODELS[:1]).num_tokens == 128
        assert asyncio.get_running_loop() is around
        await asyncio.sleep(0)

    asyncio.run(run())


def test_point_of_a_sweep_has_busy_shares_and_is_plotted() -> None:
    runs = [run_cell(SweepCell("here", drafters, 8), COSTS, TEXTS, seed=0) for drafters in (0, 2)]
    assert all(0.0 < run["target_busy"] <= 1.0 for run in runs)
    assert all(0.0 < run["loop_share"] <= 1.0 for run in runs)
    assert runs[1]["decision_us_per_round"] > 0
    curves = {curve.title: curve for curve in sweep_curves(runs)}
    assert set(curves["throughput, passes as measured"].lines) == {"no drafters", "2 drafters"}


def test_sweep_reports_its_least_ratio_to_the_target_alone_on_the_same_hardware() -> None:
    chosen = list(cells(is_quick=False, only=(16, 64)))
    assert {cell.sessions for cell in chosen} == {16, 64}
    assert {cell.targets for cell in chosen} == {1, 4}
    speeds = {("here", 16, 4): 98.0, ("flat", 16, 1): 120.0, ("flat", 64, 256): 96.0}
    runs = [
        {"kind": "sweep", "hardware": cell.hardware, "drafters": cell.drafters,
         "sessions": cell.sessions, "targets": cell.targets,
         "tokens_per_s": 0.01 if cell.targets > 1 else speeds.get(
             (cell.hardware, cell.sessions, cell.drafters), 200.0 if cell.drafters else 100.0)}
        for cell in chosen
    ]  # fmt: skip
    found = sweep_figures(runs)
    assert found["never_slower_16"].value == pytest.approx(0.98)
    assert found["sweep_over_target_alone_min"].value == pytest.approx(0.96)


def test_costs_are_read_from_an_earlier_record(tmp_path: Path) -> None:
    record, report = tmp_path / "former.json", tmp_path / "new.json"
    record.write_text(json.dumps({"environment": {"costs": costs_record(COSTS)}}))
    assert read_costs(record) == COSTS
    command = ["bench", "simulation", "--no-sweep", "--costs", str(record), "--json", str(report)]
    assert CliRunner().invoke(main, command).exit_code == 0
    assert read_costs(report) == COSTS
    record.write_text("{}")
    assert "has no costs" in CliRunner().invoke(main, command).output


def test_comparison_takes_ratios_within_each_seed() -> None:
    speeds = {"target-alone": 100.0, "specedge": 200.0, "specinfer": 50.0, "cosine-paper": 40.0}
    runs = [
        {"kind": "comparison", "cell": "flat_8", "repeat": seed, "policy": policy,
         "tokens_per_s": drift * speeds.get(policy, 300.0),
         "latency_s": {"mean": 1 / speeds.get(policy, 500.0)}}
        for policy in comparison.POLICIES for seed, drift in ((0, 1.0), (16, 2.0))
    ]  # fmt: skip
    found = comparison.comparison_figures(runs)
    assert found["flat_8_over_target_alone"].raw == (3.0, 3.0)
    assert found["flat_8_over_best_baseline"].value == 1.5
    assert found["flat_8_latency_over_best_baseline"].value == pytest.approx(0.4)
    assert found["flat_8_ablation_cooperation"].value == 1.0


def test_sampled_drafts_are_accepted_and_raise_throughput(caplog: pytest.LogCaptureFixture) -> None:
    cell, texts = comparison.ComparisonCell("flat", 1, 0.8), load_texts(0.8)
    alone, helped = (
        comparison.run_policy(cell, policy, 0, COSTS, texts)["tokens_per_s"]
        for policy in ("target-alone", "specedge")
    )
    assert helped > 1.5 * alone
    assert "draft refused" not in caplog.text
