"""Closed and open loops against a real broker and gateway, and the records of their runs."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.client.client import Client
from edgecosine.errors import ConfigError, RequestError
from edgecosine.lab.bench.arrivals import fluctuating
from edgecosine.lab.bench.record import (
    ClosedLoad,
    Conditions,
    OpenLoad,
    percentiles,
    run_record,
)
from edgecosine.lab.load_generator import closed_loop, make_jobs, open_loop
from edgecosine.lab.measured_requests import Load
from edgecosine.lab.network.conditions import NetworkConditions
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Answer, Progress
from tests.support.fakes import ScriptedService
from tests.support.mqtt import gateway_harness, needs_mosquitto, run

rates = st.floats(0.5, 50)


class Meeting(ScriptedService):
    """Answers only when `size` requests run together, and records the most that did."""

    def __init__(self, size: int) -> None:
        super().__init__(max_sessions=16)
        self._barrier = asyncio.Barrier(size)
        self.at_work = self.most = 0

    async def answer(self, request: Request) -> AsyncGenerator[Progress, None]:
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        await self._barrier.wait()
        async for step in super().answer(request):
            self.at_work -= isinstance(step, Answer)
            yield step


@needs_mosquitto
def test_closed_loop_keeps_its_concurrency_and_sends_every_request() -> None:
    async def scenario() -> tuple[Load, Meeting]:
        service = Meeting(3)
        async with gateway_harness(service) as at, Client(at.broker.url, "home") as client:
            jobs = make_jobs(9, offset=0, policy="edgecosine", temperature=0.8, max_tokens=8)
            return await closed_loop(client, jobs, 3), service

    load, service = run(scenario())
    assert service.most == 3
    assert len(load.answers) == 9
    assert sorted(Counter(a.domain for a in load.answers).values()) == [2, 2, 2, 3]
    assert {r.sampling.temperature for r in service.requests} == {0.8}
    assert load.num_tokens == 18
    assert all(a.first_text_s is not None and a.inter_token_s is not None for a in load.answers)


@needs_mosquitto
def test_open_loop_does_not_wait_and_counts_refusals() -> None:
    async def scenario() -> Load:
        jobs = make_jobs(6, offset=0, policy="edgecosine", temperature=0.0, max_tokens=8)
        service = Meeting(6)
        service.errors[jobs[2].prompt] = RequestError("no", code="nope")
        async with gateway_harness(service) as at, Client(at.broker.url, "home") as client:
            return await open_loop(client, jobs, [0.0] * 6)

    load = run(scenario())
    assert len(load.answers) == 5
    assert [error.code for error in load.refused] == ["nope"]
    conditions = Conditions("edgecosine", OpenLoad(2.0, 2.0), network=NetworkConditions(delay_ms=1))
    record = json.loads(json.dumps(run_record(conditions, load, with_requests=True)))
    assert record["load"] == {
        "kind": "open", "low_per_s": 2.0, "high_per_s": 2.0, "period_s": None
    }  # fmt: skip
    assert record["network"]["delay_ms"] == 1
    assert record["refused"] == ["nope"]
    assert record["drafters"]["d1"]["home"] == {
        "proposed": 6, "accepted": 4, "led": 0, "first": 0
    }  # fmt: skip
    assert len(record["requests"]) == 5


@given(st.integers(0, 40), st.integers(1, 40))
def test_jobs_are_the_same_whatever_the_policy(offset: int, count: int) -> None:
    ours, alone = (
        make_jobs(count, offset=offset, policy=policy, temperature=0.0)
        for policy in ("edgecosine", "target-alone")
    )
    assert [(j.domain, j.prompt, j.sampling) for j in ours] == [
        (j.domain, j.prompt, j.sampling) for j in alone
    ]
    by_domain = Counter(job.domain for job in ours)
    assert max(by_domain.values()) - min(by_domain[d] for d in by_domain) <= 1


@given(rates, rates, st.integers(0, 1 << 30))
def test_arrivals_are_in_order_and_the_same_for_the_same_seed(
    one: float, other: float, seed: int
) -> None:
    low, high = sorted((one, other))
    arrivals = fluctuating(low, high, 3.0, 10.0, seed)
    assert arrivals == sorted(arrivals)
    assert all(0 < arrival < 10 for arrival in arrivals)
    assert arrivals == fluctuating(low, high, 3.0, 10.0, seed)


def test_arrivals_at_one_rate_are_a_poisson_process() -> None:
    arrivals = fluctuating(10.0, 10.0, 1000.0, 1000.0, seed=1)
    assert 9_400 < len(arrivals) < 10_600
    a_second = Counter(int(arrival) for arrival in arrivals)
    counts = [a_second[second] for second in range(1000)]
    mean = sum(counts) / 1000
    variance = sum((count - mean) ** 2 for count in counts) / 1000
    assert variance == pytest.approx(mean, rel=0.25)


def test_fluctuating_arrivals_are_dense_in_the_middle_of_each_period() -> None:
    arrivals = fluctuating(1.0, 9.0, 10.0, 5000.0, seed=1)
    phases = Counter(int(arrival % 10) for arrival in arrivals)
    assert phases[4] + phases[5] > 5 * (phases[0] + phases[9])
    assert 5 * 5000 * 0.95 < len(arrivals) < 5 * 5000 * 1.05


def test_impossible_rates_are_refused() -> None:
    with pytest.raises(ConfigError, match="rates above 0"):
        fluctuating(0.0, 0.0, 1.0, 1.0, 0)
    with pytest.raises(ConfigError, match="rates above 0"):
        fluctuating(2.0, 1.0, 1.0, 1.0, 0)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_percentiles_are_in_order_and_among_the_samples(samples: list[float]) -> None:
    found = percentiles(samples)
    low, middle, high = found["p50"], found["p90"], found["p99"]
    assert low is not None
    assert middle is not None
    assert high is not None
    assert min(samples) <= low <= middle <= high <= max(samples)


def test_percentiles_without_samples_are_none() -> None:
    assert percentiles([]) == {"mean": None, "p50": None, "p90": None, "p99": None}
    assert percentiles(range(101))["p90"] == pytest.approx(90)


def test_record_of_a_closed_load_names_its_conditions() -> None:
    conditions = Conditions("target-alone", ClosedLoad(8), temperature=0.8, repeat=2)
    record = run_record(conditions, Load((), (), 1.0))
    assert record["policy"] == "target-alone"
    assert record["load"] == {"kind": "closed", "concurrency": 8}
    assert (record["temperature"], record["repeat"]) == (0.8, 2)
    assert record["tokens_per_s"] == 0.0
