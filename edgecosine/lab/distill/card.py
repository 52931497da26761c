"""Writes the drafters' model card and its data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecosine.lab.distill.conversations import SAMPLED_SHARE
from edgecosine.lab.distill.evaluation import GAMMA
from edgecosine.lab.distill.prompts import DOMAINS, GENERALIST
from edgecosine.lab.distill.recipe import DRAFTERS, DistillRecipe
from edgecosine.models.catalogue import NGRAM_FILE

CARD, DATA = "README.md", "drafters.json"
_TEMPLATE = """\
# Drafters of {target}

`scripts/train_drafters` trains the drafters and writes this page and `{data}`.

**Models.** {count} Llamas cut from the target: its layers {layers}, its embedding, and an output
layer for only {shortlist:,} tokens (`output.tokens`), {parameters:.1f} million parameters in a
step. The generalist's file has matrices in {kind}; embedding and tokenizer are read from the
target's file. A specialist's file has changes of rank {rank} to the generalist.

**Source and licence.** SmolLM2-135M-Instruct by Hugging Face is under Apache-2.0, and so are the
drafters. No data set was used: the target wrote the training text. It continued the beginnings of
users' turns (`edgecosine/lab/distill/prompts.py`) at temperature 1 and answered them,
{sampled:.0%} at temperature 0.8 and the others greedily. The held-out prompts (`held_out.json`)
were written by hand before.

**Training.** Distillation of the target's whole distribution over the shortlist towards acceptance
(LK losses, arXiv 2602.23881), on {text_tokens:,} answer tokens, of which the shortlist covers
{share:.1%}.

| drafter | steps | answer tokens in training | hours | MB |
|---|--:|--:|--:|--:|
{training}

{note}**N-grams.** `{ngrams}` has {entries:,} n-grams of {ngram_tokens:,} answer tokens, each with
the token that mostly followed. The target drafts for itself with them.

**Acceptance.** Mean accepted tokens of a chain of {gamma}, without the bonus token, over the
target's answers to the held-out prompts, and the share of looping text (repeated 8-grams).

{matrices}
**Limits.** A drafter cannot make an answer wrong, only slow. The prompts are short and English.
Looping text is easy to predict, which raises the figures at temperature 0.
"""


def write_card(out: Path, recipe: DistillRecipe, report: Mapping[str, Any]) -> None:
    """Write the card and its data into `out`. The report's `note`, if it has one, states deviations
    from the recipe."""
    (out / DATA).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = _TEMPLATE.format(
        target=recipe.target,
        data=DATA,
        count=len(DRAFTERS),
        layers=", ".join(map(str, recipe.layers)),
        shortlist=recipe.shortlist,
        parameters=report[GENERALIST]["parameters"] / 1e6,
        kind=recipe.kind,
        rank=recipe.rank,
        sampled=SAMPLED_SHARE,
        text_tokens=report["text"]["answer_tokens"],
        share=report["shortlist"]["share_of_answers"],
        training="\n".join(_training(name, report[name]) for name in DRAFTERS),
        ngrams=NGRAM_FILE,
        entries=report["ngrams"]["entries"],
        ngram_tokens=report["ngrams"]["answer_tokens"],
        note=f"{report['note']}\n\n" if "note" in report else "",
        gamma=GAMMA,
        matrices="\n".join(
            _matrix(temperature, report["evaluation"][temperature])
            for temperature in ("0.0", "0.8")
        ),
    )
    (out / CARD).write_text(text, encoding="utf-8")


def _training(name: str, made: Mapping[str, Any]) -> str:
    hours = made["seconds"] / 3600
    size = made["bytes"] / 1e6
    return f"| {name} | {made['steps']:,} | {made['tokens']:,} | {hours:.2f} | {size:.1f} |"


def _matrix(temperature: str, measured: Mapping[str, Any]) -> str:
    lines = [
        f"| temperature {temperature} | {' | '.join(DOMAINS)} | mean |",
        "|---|" + "--:|" * (len(DOMAINS) + 1),
    ]
    for name, row in measured["matrix"].items():
        best = {d: max(other[d] for other in measured["matrix"].values()) for d in DOMAINS}
        cells = (f"**{row[d]:.2f}**" if row[d] == best[d] else f"{row[d]:.2f}" for d in DOMAINS)
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(row.values()) / len(row):.2f} |")
    loops = (f"{measured['loop_share'][d]:.0%}" for d in DOMAINS)
    lines.append(f"| looping text | {' | '.join(loops)} | |\n")
    return "\n".join(lines)
