"""Whole clusters in the lab: nodes meet, feel their own weather, and answer through it."""

from __future__ import annotations

import os
import subprocess

import pytest

from edgecosine import zoo
from edgecosine.lab import namespaces
from edgecosine.lab.asking import ask
from edgecosine.lab.cluster import LabCluster, LabPlan, NetworkKind, lab_cluster
from edgecosine.lab.weather import FINE, Weather
from tests.mqtt_fixtures import run_patiently

FAULT = namespaces.why_not()
FAR = Weather(delay_ms=30)

pytestmark = pytest.mark.timeout(300)


async def _rtts(cluster: LabCluster) -> dict[str, float]:
    """Round-trip times in milliseconds that the target has measured, by drafter."""
    target = (await cluster.client.nodes())["target"].state
    return {name: view["rtt_ms"] for name, view in target["drafters"].items() if view["rtt_ms"]}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            "namespaces",
            marks=[
                pytest.mark.skipif(FAULT is not None, reason=f"no network namespaces: {FAULT}"),
                pytest.mark.network,
            ],
        ),
        "relays",
    ],
)
def test_nodes_meet_feel_their_weather_and_answer(kind: NetworkKind) -> None:
    async def story() -> None:
        plan = LabPlan(drafters=("ngram", "ngram"), ballast=1, weather=FAR, network=kind)
        async with lab_cluster(plan, print) as cluster:
            while len(rtts := await _rtts(cluster)) < 2:
                await cluster.client.changed()
            assert min(rtts.values()) >= 2 * FAR.delay_ms

            await cluster.set_weather(FINE, ["ngram-1"])
            while (rtts := await _rtts(cluster))["ngram-1"] >= 2 * FAR.delay_ms:
                await cluster.client.changed()
            assert rtts["ngram-0"] >= 2 * FAR.delay_ms

            prompt = zoo.prompts()["python"][0]
            texts = {
                (await ask(cluster.client, prompt, domain="", policy=p, max_tokens=24)).text
                for p in ("target-alone", "edgecosine")
            }
            assert len(texts) == 1

    run_patiently(story())
    if FAULT is None:
        done = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True)
        assert f"{namespaces.PREFIX}-{os.getpid()}-" not in done.stdout
