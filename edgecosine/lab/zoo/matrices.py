"""The evaluation stage: acceptance matrices, shares of looping text and held-out losses."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from edgecosine.lab.looping_share import loop_share
from edgecosine.lab.zoo.corpus import DOMAINS
from edgecosine.lab.zoo.evaluation import (
    GAMMA,
    held_out_loss,
    held_out_rows,
    mean_accepted,
)
from edgecosine.lab.zoo.generation import GenerationSampling, generate
from edgecosine.lab.zoo.models import load_model, load_tokenizer
from edgecosine.lab.zoo.recipe import DRAFTERS, GENERALIST, ZooPaths, ZooRecipe
from edgecosine.lab.zoo.stages import encode_documents

Matrix = dict[str, dict[str, float]]


def prompt_tokens(tokenizer: PreTrainedTokenizerFast, places: ZooPaths) -> dict[str, Tensor]:
    """Held-out prompts of each domain as (n, 48) tokens."""
    prompts = json.loads(places.prompts.read_text(encoding="utf-8"))
    return {
        domain: torch.tensor(
            [tokenizer.encode(p["text"], add_special_tokens=False) for p in prompts[domain]]
        )
        for domain in DOMAINS
    }


def acceptance(
    target: LlamaForCausalLM,
    drafters: dict[str, LlamaForCausalLM],
    prompts: dict[str, Tensor],
    new_tokens: int,
    temperature: float,
) -> tuple[Matrix, dict[str, float]]:
    """Mean accepted tokens for drafter x domain, and the share of looping text by domain."""
    matrix: Matrix = {name: {} for name in drafters}
    loops: dict[str, float] = {}
    for domain, rows in prompts.items():
        sampling = GenerationSampling(temperature, torch.arange(len(rows)))
        texts = generate(target, rows, new_tokens, sampling).tokens
        shares = [loop_share(row) for row in texts[:, rows.shape[1] :].tolist()]
        loops[domain] = sum(shares) / len(shares)
        for name, drafter in drafters.items():
            matrix[name][domain] = mean_accepted(drafter, texts, rows.shape[1], sampling)
        listed = ", ".join(f"{name} {matrix[name][domain]:.2f}" for name in drafters)
        print(f"T {temperature} {domain}: {listed}; loops {loops[domain]:.1%}", flush=True)
    return matrix, loops


def bounds(matrix: Matrix) -> dict[str, Any]:
    """Each specialist's lead in its own domain, as a share, and the mean over the domains of the
    best drafter's acceptance."""
    ahead = {}
    for domain in DOMAINS:
        own = matrix[domain][domain]
        others = [matrix[name][domain] for name in DOMAINS if name != domain]
        ahead[domain] = {
            "over_generalist": own / max(1e-9, matrix[GENERALIST][domain]) - 1,
            "over_best_other_specialist": own / max(1e-9, *others) - 1,
        }
    best = [max(row[domain] for row in matrix.values()) for domain in DOMAINS]
    return {"specialist_ahead": ahead, "mean_of_best": sum(best) / len(best)}


def token_byte_counts(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Bytes of each token (vocabulary,); byte-level tokens spell each byte as one character."""
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return torch.tensor([0 if i == 0 else len(name) for i, name in enumerate(names)])


def _losses(
    models: dict[str, LlamaForCausalLM],
    tokenizer: PreTrainedTokenizerFast,
    recipe: ZooRecipe,
    places: ZooPaths,
) -> dict[str, dict[str, dict[str, float]]]:
    sizes = token_byte_counts(tokenizer)
    losses: dict[str, dict[str, dict[str, float]]] = {name: {} for name in models}
    for domain in DOMAINS:
        documents = json.loads(places.held_out(domain).read_text(encoding="utf-8"))
        tokens = encode_documents(tokenizer, tuple(documents)).tolist()
        rows = held_out_rows(tokens, recipe.loss_length, recipe.loss_windows)
        for name, model in models.items():
            losses[name][domain] = asdict(held_out_loss(model, rows, sizes))
        listed = ", ".join(f"{n} {losses[n][domain]['nats_per_token']:.2f}" for n in models)
        print(f"loss {domain}: {listed}", flush=True)
    return losses


def evaluation_stage(recipe: ZooRecipe, places: ZooPaths) -> dict[str, Any]:
    """Measure the saved models, whose weights are rounded to bfloat16; sums are in float32."""
    tokenizer = load_tokenizer(places.tokenizer)
    target = load_model(places.zoo / "target")
    drafters = {name: load_model(places.zoo / name) for name in DRAFTERS}
    prompts = prompt_tokens(tokenizer, places)
    report: dict[str, Any] = {
        "gamma": GAMMA,
        "new_tokens": recipe.new_tokens,
        "prompts": {domain: len(rows) for domain, rows in prompts.items()},
        "acceptance": {},
    }
    for temperature in (0.0, recipe.temperature):
        matrix, loops = acceptance(target, drafters, prompts, recipe.new_tokens, temperature)
        report["acceptance"][str(temperature)] = {
            "matrix": matrix, "loop_share": loops, **bounds(matrix),
        }  # fmt: skip
    report["losses"] = _losses({"target": target} | drafters, tokenizer, recipe, places)
    return report
