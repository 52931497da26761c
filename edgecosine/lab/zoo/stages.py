"""The stages of the zoo: each reads the files of earlier stages and returns its report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from edgecosine.lab.zoo.corpus import (
    DOMAINS,
    domain_documents,
    is_held_out,
    split_documents,
)
from edgecosine.lab.zoo.distillation import (
    DistillationLoss,
    DistillationText,
    continuation_pools,
    inherit_embedding,
    join,
    pool_batches,
    text_pools,
)
from edgecosine.lab.zoo.home import home_documents
from edgecosine.lab.zoo.models import (
    load_model,
    load_tokenizer,
    new_drafter,
    new_target,
    save_model,
    save_tokenizer,
    train_tokenizer,
)
from edgecosine.lab.zoo.prompts import held_out_prompts
from edgecosine.lab.zoo.recipe import DRAFTERS, ZooPaths, ZooRecipe
from edgecosine.lab.zoo.training import Tokens, compiled, next_token_loss, train, windows

Report = dict[str, Any]
Stage = Callable[[ZooRecipe, ZooPaths], Report]
TEXT, OWN = "text", "own"


def corpus_stage(recipe: ZooRecipe, places: ZooPaths) -> Report:
    """Read the domains, split them, train the tokenizer, encode the training parts."""
    splits = {
        d: split_documents(domain_documents(d, recipe.corpus), recipe.corpus) for d in DOMAINS
    }
    sample: list[str] = []
    for split in splits.values():
        size = 0
        for text in split.train:
            if size <= recipe.tokenizer_characters:
                sample.append(text)
                size += len(text)
    tokenizer = train_tokenizer(sample)
    save_tokenizer(tokenizer, places.tokenizer)
    report: Report = {}
    for domain, split in splits.items():
        places.tokens(domain).parent.mkdir(parents=True, exist_ok=True)
        encoded = encode_documents(tokenizer, split.train)
        np.save(places.tokens(domain), encoded)
        places.held_out(domain).write_text(json.dumps(split.held_out), encoding="utf-8")
        report[domain] = {
            "train_documents": len(split.train),
            "held_out_documents": len(split.held_out),
            "train_tokens": len(encoded),
            "train_characters": sum(map(len, split.train)),
        }
        print(f"{domain}: {report[domain]}", flush=True)
    return report


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: tuple[str, ...]) -> Tokens:
    """Tokens of the documents, each followed by the end-of-text token."""
    ids: list[int] = []
    for encoded in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]:
        ids += [*encoded, 0]
    return np.array(ids, dtype=np.uint16)


def prompts_stage(recipe: ZooRecipe, places: ZooPaths) -> Report:
    """Choose the held-out prompts."""
    tokenizer = load_tokenizer(places.tokenizer)
    chosen = {}
    for domain in DOMAINS:
        documents = json.loads(places.held_out(domain).read_text(encoding="utf-8"))
        if domain == "home":
            documents += more_held_out_dialogues(recipe)
        prompts = held_out_prompts(tokenizer, domain, documents, recipe.prompts)
        chosen[domain] = [asdict(prompt) for prompt in prompts]
    places.zoo.mkdir(parents=True, exist_ok=True)
    text = json.dumps(chosen, indent=1, ensure_ascii=False)
    places.prompts.write_text(text + "\n", encoding="utf-8")
    return {domain: len(prompts) for domain, prompts in chosen.items()}


def more_held_out_dialogues(recipe: ZooRecipe) -> list[str]:
    """More dialogues that their hash excludes from training, since few give a 48-token prompt."""
    settings = recipe.corpus
    texts = home_documents(8 * settings.home_dialogues, settings.home_seed + 1)
    return [text for text in texts if is_held_out(text)]


def target_stage(recipe: ZooRecipe, places: ZooPaths) -> Report:
    """Train the target on equal shares of the domains."""
    sources = [np.load(places.tokens(domain)) for domain in DOMAINS]
    model = new_target(recipe.target_seed)
    report = train(
        "target",
        model,
        windows(sources, recipe.target),
        compiled(next_token_loss(model), recipe.target),
        recipe.target,
    )
    save_model(model, load_tokenizer(places.tokenizer), places.zoo / "target")
    return asdict(report)


def pool_stage(domain: str) -> Stage:
    """The stage that computes the teacher's material of one domain: the target's continuations of
    its prompts, and hidden states on its text."""

    def stage(recipe: ZooRecipe, places: ZooPaths) -> Report:
        target = load_model(places.zoo / "target")
        source, report = np.load(places.tokens(domain)), {}
        for kind, maker in ((OWN, continuation_pools), (TEXT, text_pools)):
            started, pools = time.monotonic(), []
            for pool in maker(target, source, recipe.pool):
                pools.append(pool)
                rows = sum(len(p.tokens) for p in pools)
                rate = rows * recipe.pool.length / (time.monotonic() - started)
                print(f"pool {domain} {kind}: {rows} rows {rate:.0f} tokens/s", flush=True)
            _save_pool(join(pools), kind, domain, places)
            report[f"{kind}_tokens"] = rows * recipe.pool.length
        return report

    return stage


def _save_pool(pool: DistillationText, kind: str, domain: str, places: ZooPaths) -> None:
    places.pool(kind, domain, "tokens").parent.mkdir(parents=True, exist_ok=True)
    np.save(places.pool(kind, domain, "tokens"), pool.tokens)
    np.save(places.pool(kind, domain, "hidden"), pool.hidden)


def _pools(kind: str, domains: tuple[str, ...], places: ZooPaths) -> list[DistillationText]:
    return [
        DistillationText(
            np.load(places.pool(kind, domain, "tokens")),
            np.load(places.pool(kind, domain, "hidden")),
        )
        for domain in domains
    ]


def drafter_stage(name: str) -> Stage:
    """The stage that distils one drafter."""

    def stage(recipe: ZooRecipe, places: ZooPaths) -> Report:
        target = load_model(places.zoo / "target")
        head = target.lm_head.weight.detach()
        drafter = new_drafter(recipe.drafter_seed)
        inherit_embedding(drafter, head)
        domains = DRAFTERS[name]
        batches = pool_batches(
            _pools(OWN, domains, places), _pools(TEXT, domains, places), recipe.drafter
        )
        loss = compiled(DistillationLoss(drafter, head, recipe.hard_share), recipe.drafter)
        report = train(name, drafter, batches, loss, recipe.drafter)
        save_model(drafter, load_tokenizer(places.tokenizer), places.zoo / name)
        return asdict(report)

    return stage
