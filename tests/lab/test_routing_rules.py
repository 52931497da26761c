"""Rules that route recorded texts, and how many tokens they miss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgecosine.cli import main
from edgecosine.lab.routing.rules import (
    GAMMA,
    Bandit,
    Hedge,
    PromptScoreRule,
    Rule,
    accepted_lengths,
    leaders,
    worth,
)
from edgecosine.lab.routing.run_routing import RoutingSettings, routing_figures
from edgecosine.lab.simulation.texts import Texts, load_texts

LENGTH = 40
RECORD = Path(__file__).parents[2] / "docs" / "measured" / "simulation.json"


def texts_of(right: dict[str, dict[str, float]], num: int = 6) -> Texts:
    """Texts of each domain, on which a drafter's token is right with a probability."""
    rng = np.random.default_rng(1)
    domains = tuple(domain for _ in range(num) for domain in next(iter(right.values())))
    shape = (len(right), len(domains), LENGTH + GAMMA, 4)
    guesses = np.ones(shape, np.uint16)
    for which, shares in enumerate(right.values()):
        for number, domain in enumerate(domains):
            guesses[which, number, :, 0] = rng.random(shape[2]) >= shares[domain]
    prompt_scores = np.array([[1.0 - shares[d] for d in domains] for shares in right.values()])
    prompts, ends = ((0,) * 8,) * len(domains), (shape[2],) * len(domains)
    answers, certain = np.zeros(shape[1:3], np.uint16), np.zeros(shape, np.uint8)
    return Texts(prompts, answers, ends, domains, tuple(right), guesses, certain, prompt_scores)


EXPERTS = texts_of({"a": {"x": 0.95, "y": 0.1}, "b": {"x": 0.1, "y": 0.9}})
LENGTHS = accepted_lengths(EXPERTS, LENGTH)
ALL = range(len(EXPERTS.domains))


def test_accepted_lengths_end_at_the_first_wrong_guess() -> None:
    texts = load_texts()
    lengths = accepted_lengths(texts, 16)
    for drafter, text, place in ((0, 0, 0), (1, 5, 3), (4, 20, 15)):
        truth = texts.answers[text, place:]
        expected = 0
        while (
            expected < GAMMA
            and texts.guesses[drafter, text, place + expected, 0] == (truth[expected])
        ):
            expected += 1
        assert lengths[drafter, text, place] == expected


def test_specialist_has_the_highest_acceptance_in_its_domain() -> None:
    found = worth(EXPERTS, LENGTHS, ALL)
    assert found["a"]["x"] > 3 > found["b"]["x"]
    assert found["b"]["y"] > 3 > found["a"]["y"]


@pytest.mark.parametrize(
    ("rule", "least"), [(PromptScoreRule(), 1.0), (Hedge(2, 1.0), 0.8), (Bandit(2, 0.1), 0.7)]
)
def test_rules_choose_the_best_drafter_of_the_domain(rule: Rule, least: float) -> None:
    led = leaders(rule, EXPERTS, LENGTHS, ALL)
    right = led["a"]["x"]["led"] + led["b"]["y"]["led"]
    everything = [row for domains in led.values() for row in domains.values()]
    assert right >= least * sum(row["led"] for row in everything)
    assert sum(row["first"] for row in everything) == len(EXPERTS.domains)


def test_repetitions_measure_different_prompts_and_warm_up_on_others() -> None:
    settings = RoutingSettings()
    assert settings.measured <= settings.warm_up
    assert settings.num_prompts == 600


def test_figures_of_edgecosine_are_those_after_a_warm_up() -> None:
    runs = [
        {"rule": rule, "state": state, "regret": regret, "first_right": 1 - regret}
        for rule, state, regret in (
            ("edgecosine", "cold", 0.4), ("edgecosine", "warm", 0.1), ("hedge", "warm", 0.2),
        )
    ]  # fmt: skip
    figures = routing_figures(runs)
    assert figures["routing_regret_fresh"].value == 0.1
    assert figures["routed_first_right_fresh"].value == 0.9
    assert figures["routing_regret_edgecosine_cold"].value == 0.4
    assert figures["routed_first_right_hedge_warm"].value == 0.8


@pytest.mark.soak
def test_command_routes_fresh_prompts(tmp_path: Path) -> None:
    record = tmp_path / "routing.json"
    words = ["bench", "routing", "--costs", str(RECORD), "--quick", "--repeats", "1"]
    done = CliRunner().invoke(main, [*words, "--json", str(record)])
    assert done.exit_code == 0, done.output
    runs = json.loads(record.read_text())["runs"]
    assert {run["state"] for run in runs} == {"cold", "warm"}
    assert all(0 <= run["first_right"] <= 1 for run in runs)
