"""The figures and the plot of `edgecosine bench committee`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgecosine.lab.bench.committee.curves import reconstruction_curves
from edgecosine.lab.bench.committee.figures import exactness_figures, speed_figures

RECORD = Path(__file__).parents[2] / "docs" / "measured" / "committee.json"


def test_committed_figures_follow_from_the_committed_runs() -> None:
    record = json.loads(RECORD.read_text())
    found = exactness_figures(record["runs"]) | speed_figures(record["runs"])
    for name, figure in found.items():
        assert figure.value == pytest.approx(record["figures"][name]["value"]), name


def test_uniform_reconstruction_is_nearer_than_renormalising() -> None:
    """The paper's figure: less error with longer lists, and with the rest spread evenly."""
    [curves] = reconstruction_curves(json.loads(RECORD.read_text())["runs"])
    for temperature in ("0.8", "1", "1.2"):
        errors = {
            how: np.array([error for _, error in curves.lines[f"{how}, temperature {temperature}"]])
            for how in ("renormalise", "uniform")
        }
        assert (errors["uniform"] < errors["renormalise"]).all()
        assert all((np.diff(each) < 0).all() for each in errors.values())
