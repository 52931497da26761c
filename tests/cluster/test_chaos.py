"""A short chaos run: no answer changes while real processes are killed, cut off and starved."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from edgecosine.cli.up import split_cores
from edgecosine.lab.chaos.faults import MEMBER_KINDS, Kind
from edgecosine.lab.chaos.run_chaos import ChaosSettings, run_chaos
from edgecosine.lab.network.netns import namespaces
from edgecosine.local.embedded_broker import find_mosquitto
from tests.support.forked_nodes import spawn
from tests.support.mqtt import run_patiently

KINDS: tuple[Kind, ...] = (
    "kill_target",
    "kill_broker",
    "kill_drafter",
    "cut_drafter",
    "step_target_clock",
    "fill_disk",
    "double_packets",
)


pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]


def _settings(requests: int, kinds: tuple[Kind, ...], **more: Any) -> ChaosSettings:
    target_cores, drafter_cores = split_cores()
    return ChaosSettings(
        requests=requests, kinds=kinds, at_work=4, max_tokens=16, ballast=2,
        target_cores=target_cores, drafter_cores=drafter_cores, **more,
    )  # fmt: skip


def test_no_request_is_lost_repeated_changed_or_hung() -> None:
    lines: list[str] = []
    settings = _settings(14, KINDS, drafters=("ngram", "ngram"))

    async def scenario() -> None:
        run = await run_chaos(settings, lines.append)
        assert run.result.is_clean, run.result.faulty
        assert run.result.requests == settings.requests
        injected = {each.fault.kind for each in run.injected}
        assert injected == set(KINDS) - set(run.left_out)
        assert {"kill_target", "kill_broker", "kill_drafter", "cut_drafter"} <= injected
        assert run.figures["faults_injected"].value == len(injected)
        assert run.nodes_back == len(settings.drafters)

    run_patiently(scenario())
    assert any("kill target" in line for line in lines)
    if namespaces.why_not() is None:
        done = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True)
        assert f"{namespaces.PREFIX}-{os.getpid()}-" not in done.stdout


def test_committee_answers_as_before_while_its_members_are_killed_frozen_and_cut_off() -> None:
    settings = _settings(
        12, MEMBER_KINDS, drafters=("ngram",), members=("legal", "legal"), network="relays",
        seed=273,
    )  # fmt: skip

    async def scenario() -> None:
        run = await run_chaos(settings, print, spawn)
        assert run.result.is_clean, run.result.faulty
        assert run.result.requests == settings.requests
        assert {each.fault.kind for each in run.injected} == set(MEMBER_KINDS)
        assert run.nodes_back == 3

    run_patiently(scenario())
