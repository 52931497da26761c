"""Recorded texts: files keep them, and a simulated target says each of them up to its end."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgecosine import models, zoo
from edgecosine.cli import main
from edgecosine.errors import LabError
from edgecosine.lab.demo_models import Scene
from edgecosine.lab.regime_map.cells import MapCell, all_cells
from edgecosine.lab.regime_map.run_map import former_runs
from edgecosine.lab.regime_map.texts import measured, spliced, swept
from edgecosine.lab.simulation.cluster import Scenario, SimulatedLoad, simulate
from edgecosine.lab.simulation.recording import choose_prompts, record
from edgecosine.lab.simulation.texts import RECORDED, ZOO, Texts, load_texts, read_texts
from tests.lab.test_simulation import COSTS

REAL = models.DEFAULT_TARGET
RECORDS = Path(__file__).parents[2] / "docs" / "measured"


def assert_equal(some: Texts, others: Texts) -> None:
    for each in fields(Texts):
        one, other = getattr(some, each.name), getattr(others, each.name)
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


def made_up() -> Texts:
    """Two texts, one of which ends early, with prompts of different lengths."""
    guesses = np.arange(2 * 30 * 4, dtype=np.uint16).reshape(1, 2, 30, 4)
    return Texts(
        prompts=(tuple(range(9)), tuple(range(100, 112))),
        answers=np.arange(60, dtype=np.uint16).reshape(2, 30),
        ends=(30, 7),
        domains=("code", "facts"),
        drafters=("generalist",),
        guesses=guesses,
        shares=(guesses % 256).astype(np.uint8),
        prompt_scores=np.array([[1.5, 2.5]], np.float32),
        temperature=0.8,
        name=REAL,
    )


def test_file_keeps_prompts_of_different_lengths_and_ends(tmp_path: Path) -> None:
    made_up().save(tmp_path / "texts.npz")
    assert_equal(read_texts(tmp_path / "texts.npz", 0.8, REAL), made_up())


def test_text_is_identified_by_its_prompt() -> None:
    texts = made_up()
    for number, tokens in enumerate(texts.lists):
        length = len(texts.prompts[number])
        assert [texts.text_of(tokens[:end]) for end in (length, length + 3)] == [number] * 2


def test_recording_has_the_targets_answers_and_the_drafters_guesses() -> None:
    """The zoo's target continues a text in the same way when a part of its answer is the prompt."""
    scene = Scene(zoo.TARGET, ("home", models.NGRAM), zoo.prompts(), is_chat=False)
    [*_, (domain, prompt)] = prompts = choose_prompts(scene, 1)
    found = record(ZOO, scene, 0.0, prompts, 6)
    assert (found.drafters, found.domains[-1]) == (("home",), domain)
    assert found.answers.shape == (len(prompts), 6)
    assert found.ends == (6,) * len(prompts)
    assert found.guesses.shape == (1, len(prompts), 6, 4)
    assert (found.shares[..., 0] >= found.shares[..., 1]).all()
    [again] = record(ZOO, scene, 0.0, [(domain, prompt)], 4).answers
    assert again.tolist() == found.answers[-1, :4].tolist()


@pytest.mark.parametrize("temperature", RECORDED[REAL])
@pytest.mark.parametrize("policy", ["target-alone", "edgecosine"])
def test_simulated_answers_of_the_real_model_are_the_recorded_ones(
    policy: str, temperature: float
) -> None:
    texts = load_texts(temperature, REAL)
    early = [number for number, end in enumerate(texts.ends) if end < 40]
    chosen = texts.only([*early[:6], *range(6)])
    load = SimulatedLoad(policy, 3, len(chosen.prompts), 40)
    [outcome] = simulate(Scenario(texts.drafters, has_device=True), [load], COSTS, chosen)
    turns = chosen.turns()
    assert early
    assert outcome.answers == {
        number: tuple(chosen.answer(turns[number], 40)) for number in range(len(turns))
    }


@pytest.mark.parametrize("temperature", RECORDED[REAL])
def test_every_cell_of_the_real_model_has_its_drafters_and_texts(temperature: float) -> None:
    texts = load_texts(temperature, REAL)
    for cell in all_cells(REAL):
        assert set(cell.models()) <= set(texts.drafters)
        assert len(cell.models()) == cell.drafters <= len(texts.drafters)
        used = [swept(texts, cell), *(measured(texts, cell, repeat) for repeat in range(5))]
        prompts = [prompt for each in used for prompt in each.prompts]
        assert len(set(prompts)) == len(prompts)


def test_text_of_changing_domains_ends_with_the_first_piece_that_ends() -> None:
    texts = replace(made_up(), ends=(30, 27))
    assert spliced(texts, 2).ends == (27, 30)
    assert spliced(made_up(), 2).ends == (24, 7)


def test_unknown_texts_are_refused_with_the_known_names(tmp_path: Path) -> None:
    command = ["bench", "map", "--costs", str(RECORDS / "simulation.json"), "--texts", "unknown"]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 1
    assert f"no recorded texts unknown; there are {ZOO}, {REAL}" in refused.output
    with pytest.raises(LabError, match="have the texts of zoo"):
        former_runs(RECORDS / "map.json", REAL)
    assert former_runs(tmp_path / "none.json", REAL) == []
    assert MapCell(texts=REAL).name == MapCell().name
