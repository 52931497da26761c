"""Make the zoo: `python -m edgecosine.lab.zoo.train [--quick] [--stage NAME ...]`.

The `pool-*` stages do not depend on each other, nor do the `drafter-*` stages: processes with
`--stage NAME --threads 1` side by side use a loaded machine better than one after the other.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from edgecosine.lab.zoo.card import card_stage
from edgecosine.lab.zoo.corpus import DOMAINS, MissingSourceError
from edgecosine.lab.zoo.matrices import evaluation_stage
from edgecosine.lab.zoo.recipe import DRAFTERS, FULL, QUICK, ZooPaths, ZooRecipe
from edgecosine.lab.zoo.stages import (
    Stage,
    corpus_stage,
    drafter_stage,
    pool_stage,
    prompts_stage,
    target_stage,
)

ZOO = Path(__file__).resolve().parents[2] / "zoo"
STAGES: dict[str, Stage] = {
    "corpus": corpus_stage,
    "prompts": prompts_stage,
    "target": target_stage,
    **{f"pool-{domain}": pool_stage(domain) for domain in DOMAINS},
    **{f"drafter-{name}": drafter_stage(name) for name in DRAFTERS},
    "evaluation": evaluation_stage,
    "card": card_stage,
}
ALWAYS = ("card",)


def run_stage(name: str, recipe: ZooRecipe, places: ZooPaths) -> None:
    """Run one stage and write its report, whose file marks the stage as finished."""
    print(f"== {name}", flush=True)
    started = time.monotonic()
    report = STAGES[name](recipe, places)
    seconds = round(time.monotonic() - started, 1)
    record = {"wall_seconds": seconds, "threads": torch.get_num_threads(), **report}
    places.report(name).parent.mkdir(parents=True, exist_ok=True)
    places.report(name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def make_zoo(recipe: ZooRecipe, places: ZooPaths, stages: list[str]) -> None:
    """Run the named stages, or every unfinished one in order."""
    for name in stages or STAGES:
        if stages or name in ALWAYS or not places.report(name).exists():
            run_stage(name, recipe, places)
        else:
            print(f"== {name}: skipped, already finished", flush=True)


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train_zoo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny version, for tests")
    parser.add_argument(
        "--stage", action="append", default=[], choices=list(STAGES),
        help="run this stage even if it is finished; may be given again",
    )  # fmt: skip
    parser.add_argument("--scratch", type=Path, help="folder of intermediate files [.train]")
    parser.add_argument("--out", type=Path, help="folder of the zoo [edgecosine/zoo]")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `scripts/train_zoo`."""
    chosen = _arguments(arguments)
    torch.set_num_threads(chosen.threads)
    recipe = QUICK if chosen.quick else FULL
    scratch = chosen.scratch or Path(".train") / ("quick" if chosen.quick else "")
    # A quick run must never overwrite the committed zoo.
    places = ZooPaths(scratch, chosen.out or (scratch / "zoo" if chosen.quick else ZOO))
    try:
        make_zoo(recipe, places, chosen.stage)
    except (MissingSourceError, FileNotFoundError) as error:
        print(f"train_zoo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
