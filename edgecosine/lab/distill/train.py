"""Train the drafters of the real model: `scripts/train_drafters`.

The target writes the training text; the generalist starts from some of the target's layers, the
specialists start from the generalist. Every stage resumes where it was interrupted.
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
    ngrams_stage,
    shortlist_stage,
    text_stage,
)
from edgecosine.models.catalogue import DRAFTERS as PACKAGED

STAGES: dict[str, Stage] = {
    "text": text_stage,
    "shortlist": shortlist_stage,
    "ngrams": ngrams_stage,
    **{name: drafter_stage(name) for name in DRAFTERS},
    "evaluation": evaluation_stage,
}


_SHARES = {"text": 8, "shortlist": 1, GENERALIST: 5, "evaluation": 2}
"""Relative shares of the time limit; specialists have 1 each."""


def make_drafters(
    recipe: DistillRecipe,
    paths: DistillPaths,
    device: str,
    stages: list[str],
    minutes: float = math.inf,
) -> None:
    """Run the named stages, or all that have not ended, and write the card.

    Text and trainings are shortened so that all stages end within `minutes`, or soon afterwards if
    loading takes longer.
    """
    end = time.monotonic() + 60 * minutes
    paths.scratch.mkdir(parents=True, exist_ok=True)
    _link_target(Path(recipe.target), paths.out)
    report: dict[str, Any] = {}
    if paths.report.exists():
        report = json.loads(paths.report.read_text(encoding="utf-8"))
    pending = stages or [name for name in STAGES if name not in report]
    for index, name in enumerate(pending):
        print(f"== {name}", flush=True)
        began = time.monotonic()
        shares = [_SHARES.get(later, 1) for later in pending[index:]]
        deadline = began + (end - began) * shares[0] / sum(shares)
        measured = STAGES[name](recipe, paths, device, deadline)
        report[name] = {**measured, "seconds": round(time.monotonic() - began, 1), "device": device}
        paths.report.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if report.keys() >= STAGES.keys():
        write_card(paths.out, recipe, report)
        print(f"written: {paths.out}", flush=True)


def _link_target(target: Path, out: Path) -> None:
    """Link a target that is a file into the drafters' folder, where drafters look for it."""
    out.mkdir(parents=True, exist_ok=True)
    link = out / target.name
    if target.is_file() and not link.exists():
        link.symlink_to(target.resolve())


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train_drafters", description=__doc__)
    parser.add_argument(
        "--stage", action="append", default=[], choices=list(STAGES),
        help="run this stage, even if it has ended; may be repeated [all that have not ended]",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto [cpu]")
    parser.add_argument("--minutes", type=float, default=math.inf, metavar="N",
                        help="time limit, which shortens text and trainings "
                        "[no limit]")  # fmt: skip
    parser.add_argument("--target", help="target model: a name of the catalogue, or a GGUF file "
                        f"[{DistillRecipe.target}]")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a toy model, to test the stages")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(),
                        help="CPU threads [torch's default]")  # fmt: skip
    parser.add_argument("--text-tokens", type=int, metavar="N",
                        help="answer tokens that the target writes "
                        f"[{DistillRecipe.text_tokens:,}]")  # fmt: skip
    parser.add_argument("--scratch", type=Path, default=Path(".train/drafters"),
                        help="folder of checkpoints, from which a later run resumes "
                        "[.train/drafters]")  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of the drafters [in the package]")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `scripts/train_drafters`."""
    chosen = _arguments(arguments)
    torch.set_num_threads(chosen.threads)
    try:
        device = resolve_device(chosen.device)
        make_recipe = (
            toy_recipe if chosen.quick else DistillRecipe if device == "cpu" else gpu_recipe
        )
        recipe = make_recipe()
        if chosen.text_tokens:
            recipe = replace(recipe, text_tokens=chosen.text_tokens)
        if chosen.target:
            recipe = replace(recipe, target=chosen.target)
        paths = DistillPaths(chosen.scratch, chosen.out or PACKAGED / recipe.target)
        make_drafters(recipe, paths, device, chosen.stage, chosen.minutes)
    except (EdgecosineError, FileNotFoundError) as error:
        print(f"train_drafters: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("train_drafters: stopped; the same command resumes here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
