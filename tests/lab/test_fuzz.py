"""Untrusted inputs: valid ones are accepted, and mutated ones are accepted or refused."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecosine.cli.fuzz import command
from edgecosine.lab.fuzz.mutations import mutate_bytes
from edgecosine.lab.fuzz.run_fuzz import FuzzRun, figures_of
from edgecosine.lab.fuzz.targets import TARGETS, Broken, Target

needs_atheris = pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")


def mutated(target: Target, data: bytes, random: Random) -> bytes:
    try:
        if random.random() < 0.7:
            head = target.num_head
            return data[:head] + target.mutate(data[head:], random)
    except (ValueError, RecursionError):
        pass  # an earlier mutation has broken the format
    return mutate_bytes(data, random)


@pytest.mark.parametrize("name", TARGETS)
def test_valid_inputs_are_accepted(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds():
        assert target.attempt(seed)
        assert len(seed) <= target.max_bytes


@pytest.mark.parametrize("name", TARGETS)
@given(source=st.integers(0, 1 << 64), count=st.integers(1, 4))
@settings(max_examples=300)
def test_mutated_inputs_are_accepted_or_refused(name: str, source: int, count: int) -> None:
    target, random = TARGETS[name], Random(source)
    data = random.choice(target.seeds())
    for _ in range(count):
        data = mutated(target, data, random)
    target.attempt(data)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=400))
def test_any_bytes_are_accepted_or_refused(name: str, data: bytes) -> None:
    TARGETS[name].attempt(data)


@pytest.mark.parametrize("name", TARGETS)
def test_some_mutated_inputs_are_accepted_and_some_refused(name: str) -> None:
    target, random = TARGETS[name], Random(1)
    seeds = target.seeds()
    tried = (mutated(target, random.choice(seeds), random) for _ in range(5000))
    assert {target.attempt(data) for data in tried} == {True, False}


def test_input_that_changes_in_a_round_trip_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    target = TARGETS["messages"]
    monkeypatch.setattr("edgecosine.lab.fuzz.targets.encode", lambda _: target.seeds()[-1])
    with pytest.raises(Broken, match="changes in a round trip"):
        target.attempt(target.seeds()[0])


def test_findings_are_counted_by_target() -> None:
    runs = [FuzzRun("frames", 300, 2.0), FuzzRun("messages", 100, 2.0, broken="RecursionError")]
    values = {name: figure.value for name, figure in figures_of(runs).items()}
    assert values == {"fuzzed_inputs": 400, "fuzzed_inputs_per_s": 100.0, "fuzz_findings": 1}


def test_replay_reports_whether_an_input_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "input"
    for data, result in ((TARGETS["messages"].seeds()[0], "accepted"), (b"", "refused")):
        file.write_bytes(data)
        replayed = CliRunner().invoke(command, ["--target", "messages", "--replay", str(file)])
        assert replayed.output == f"{result}\n"


@needs_atheris
def test_run_is_written_to_its_report(tmp_path: Path) -> None:
    report = tmp_path / "fuzz.json"
    options = ["--inputs", "2000", "--target", "messages", "--json", str(report)]
    done = CliRunner().invoke(command, options)
    assert done.exit_code == 0, done.output
    [run] = json.loads(report.read_text())["runs"]
    assert run["inputs"] == 2000
    assert run["edges"] > 20
    assert run["broken"] is None
