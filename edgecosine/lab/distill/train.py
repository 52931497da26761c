"""Make the drafters of the real model: `scripts/train_drafters`.

The target writes the training text itself; the generalist begins as some of the target's layers,
the specialists begin as the generalist. Every stage resumes where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edgecosine.engine.loading.device import resolve_device
from edgecosine.errors import EdgecosineError
from edgecosine.lab.distill.card import write_card
from edgecosine.lab.distill.prompts import GENERALIST
from edgecosine.lab.distill.recipe import (
    DRAFTERS,
    DistillPaths,
    DistillRecipe,
    gpu_recipe,
    toy_recipe,
)
from edgecosine.lab.distill.stages import (
    Stage,
    drafter_stage,
    evaluation_stage,
    shortlist_stage,
    text_stage,
)
from edgecosine.models.catalogue import DRAFTERS as PACKAGED

STAGES: dict[str, Stage] = {
    "text": text_stage,
    "shortlist": shortlist_stage,
    **{name: drafter_stage(name) for name in DRAFTERS},
    "evaluation": evaluation_stage,
}


_SHARES = {"text": 8, "shortlist": 1, GENERALIST: 5, "evaluation": 2}
"""Of the time that all stages together may take; specialists get one each."""


def make_drafters(
    recipe: DistillRecipe,
    places: DistillPaths,
    device: str,
    stages: list[str],
    minutes: float = math.inf,
) -> None:
    """Run the named stages, or all that have not ended, and write the card.

    Text and trainings end in time for all to end within `minutes`, and soon after where loading
    alone takes longer.
    """
    end = time.monotonic() + 60 * minutes
    places.scratch.mkdir(parents=True, exist_ok=True)
    _bring(Path(recipe.target), places.out)
    report: dict[str, Any] = {}
    if places.report.exists():
        report = json.loads(places.report.read_text(encoding="utf-8"))
    coming = stages or [name for name in STAGES if name not in report]
    for index, name in enumerate(coming):
        print(f"== {name}", flush=True)
        began = time.monotonic()
        shares = [_SHARES.get(later, 1) for later in coming[index:]]
        deadline = began + (end - began) * shares[0] / sum(shares)
        measured = STAGES[name](recipe, places, device, deadline)
        report[name] = {**measured, "seconds": round(time.monotonic() - began, 1), "device": device}
        places.report.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if report.keys() >= STAGES.keys():
        write_card(places.out, recipe, report)
        print(f"written: {places.out}", flush=True)


def _bring(target: Path, out: Path) -> None:
    """Link a target that is a file into the drafters' folder: they find it beside them."""
    out.mkdir(parents=True, exist_ok=True)
    beside = out / target.name
    if target.is_file() and not beside.exists():
        beside.symlink_to(target.resolve())


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train_drafters", description=__doc__)
    parser.add_argument(
        "--stage", action="append", default=[], choices=list(STAGES),
        help="run this stage, even if it has ended; may be given again [all that have not ended]",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto [cpu]")
    parser.add_argument("--minutes", type=float, default=math.inf, metavar="N",
                        help="be done after so many, with less text and shorter trainings "
                        "[as long as it takes]")  # fmt: skip
    parser.add_argument("--target", help="the model to cut from: of the catalogue, or a GGUF file "
                        f"[{DistillRecipe.target}]")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a toy: tries the stages")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--text-tokens", type=int, metavar="N",
                        help="answer tokens that the target writes "
                        f"[{DistillRecipe.text_tokens:,}]")  # fmt: skip
    parser.add_argument("--scratch", type=Path, default=Path(".train/drafters"),
                        help="checkpoints for a later run [.train/drafters]")  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of the drafters [the package's own]")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `scripts/train_drafters`."""
    chosen = _arguments(arguments)
    torch.set_num_threads(chosen.threads)
    try:
        device = resolve_device(chosen.device)
        make = toy_recipe if chosen.quick else DistillRecipe if device == "cpu" else gpu_recipe
        recipe = make()
        if chosen.text_tokens:
            recipe = replace(recipe, text_tokens=chosen.text_tokens)
        if chosen.target:
            recipe = replace(recipe, target=chosen.target)
        places = DistillPaths(chosen.scratch, chosen.out or PACKAGED / recipe.target)
        make_drafters(recipe, places, device, chosen.stage, chosen.minutes)
    except (EdgecosineError, FileNotFoundError) as error:
        print(f"train_drafters: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("train_drafters: stopped; the same command resumes here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
