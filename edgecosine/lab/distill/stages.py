"""The stages of a training; each resumes where it was interrupted and returns measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import LlamaForCausalLM

from edgecosine.engine.loading.cut_models import load_cut_model, read_cut_config
from edgecosine.engine.loading.gguf_file import read_gguf
from edgecosine.engine.loading.sources import locate
from edgecosine.fusion.ngram_file import write_ngrams
from edgecosine.fusion.ngram_table import LONGEST, NgramTable
from edgecosine.lab.distill import training_text as pool
from edgecosine.lab.distill.adapters import adapt
from edgecosine.lab.distill.conversations import (
    ANSWER_TEMPERATURE,
    Conversation,
    Openers,
    Template,
    Writer,
)
from edgecosine.lab.distill.evaluation import held_out_turns, matches, mean_accepted, seed_of
from edgecosine.lab.distill.export import write_adapter, write_drafter
from edgecosine.lab.distill.losses import AcceptanceLoss, batches_from, plan, rate
from edgecosine.lab.distill.prompts import DOMAINS, GENERALIST, held_out
from edgecosine.lab.distill.recipe import DRAFTERS, DistillPaths, DistillRecipe
from edgecosine.lab.distill.rounding import round_student
from edgecosine.lab.distill.student import cut, shortlist_of
from edgecosine.lab.distill.teacher import Teacher, head_of, load_stock, load_teacher
from edgecosine.lab.distill.trainer import Trainer
from edgecosine.lab.looping_share import loop_share

Report = dict[str, Any]
Stage = Callable[[DistillRecipe, DistillPaths, str, float], Report]
"""Runs on a device to its end, or until a deadline by `time.monotonic`; returns measurements."""
_SLOT_SIZE = 640
_SAVE_EVERY_S = 60.0
_LOG_EVERY_S = 10.0
_SHORTLIST_STATES = 5
_ROUNDING_CONVERSATIONS = 64
_ADAPTER_KIND = "Q8_0"
_SLOTS_LOG = 21
"""Slots in which the n-grams of some millions of tokens hardly collide, as a power of two."""
_LEAST_COUNT = 2
"""Least occurrences of an n-gram that is kept. Those that occur once are four fifths of all and
gain only 1%."""


def text_stage(recipe: DistillRecipe, paths: DistillPaths, device: str, deadline: float) -> Report:
    """Let the target write the training text, shard by shard, until the deadline at the latest."""
    paths.text.mkdir(parents=True, exist_ok=True)
    count = -(-recipe.text_tokens // recipe.shard_tokens)
    missing = [i for i in range(count) if not (paths.text / f"{i:04}.npz").exists()]
    if missing:
        teacher = load_teacher(recipe.target, device, slots=recipe.slots, slot_size=_SLOT_SIZE)
        openers = Openers(teacher.tokenizer, recipe.seed + 1000 * missing[0])
        template = Template.of(teacher.tokenizer)
        writer = Writer(
            teacher.feeder, teacher.head, template, slots=recipe.slots,
            max_answer=recipe.max_answer, seed=recipe.seed + missing[0],
        )  # fmt: skip
        shard, size, began = list[Conversation](), 0, time.monotonic()
        for done in writer.write(openers):
            openers.count(done)
            shard.append(done)
            size += len(done.states)
            is_late = time.monotonic() > deadline
            if size >= recipe.shard_tokens or is_late:
                pool.save(paths.text / f"{missing.pop(0):04}.npz", shard)
                speed = size / (time.monotonic() - began)
                print(f"text: {len(missing)} shards left, {speed:.0f} tokens/s", flush=True)
                shard, size, began = [], 0, time.monotonic()
            if not missing or is_late:
                break
    text = pool.load(paths.text)
    return {"conversations": len(text), "answer_tokens": text.num_answer_tokens}


def shortlist_stage(recipe: DistillRecipe, paths: DistillPaths, device: str, _: float) -> Report:
    """Choose the tokens of the drafters' output layers."""
    text, stock = pool.load(paths.text), load_stock(recipe.target, torch.bfloat16)
    states = torch.from_numpy(text.states[::_SHORTLIST_STATES].copy())
    ends = stock.config.eos_token_id or []
    always = [ends] if isinstance(ends, int) else list(ends)
    tokens = shortlist_of(states, head_of(stock).to(device), recipe.shortlist, always)
    torch.save(tokens, paths.shortlist)
    share = np.isin(text.answers, tokens.numpy()).mean()
    return {"tokens": len(tokens), "share_of_answers": float(share)}


def ngrams_stage(_recipe: DistillRecipe, paths: DistillPaths, _device: str, _: float) -> Report:
    """Write the n-grams of the answers, for the target's own drafts."""
    text, table, known = pool.load(paths.text), NgramTable(_SLOTS_LOG), list[list[int]]()
    for done in text.conversations():
        tokens = done.tokens.tolist()
        table.learn(tokens, done.num_prompt)
        known.append(tokens[max(0, done.num_prompt - LONGEST) :])
    paths.out.mkdir(parents=True, exist_ok=True)
    entries = write_ngrams(paths.ngrams, table, known, _LEAST_COUNT)
    return {
        "entries": entries,
        "answer_tokens": text.num_answer_tokens,
        "bytes": paths.ngrams.stat().st_size,
    }


def drafter_stage(name: str) -> Stage:
    """The training of one drafter: the generalist from the target's layers, specialists as low-rank
    changes to the finished generalist."""

    def stage(recipe: DistillRecipe, paths: DistillPaths, device: str, deadline: float) -> Report:
        shortlist = torch.load(paths.shortlist, weights_only=True)
        stock = load_stock(recipe.target, torch.float32)
        loss = AcceptanceLoss(head_of(stock)[shortlist].to(device))
        if name == GENERALIST:
            student = cut(stock, recipe.layers, shortlist)
        else:
            student = as_served(paths.drafter(GENERALIST))
            adapt(student, recipe.rank)
        del stock
        torch.nn.Module.to(student, device)
        if device != "cpu":
            student.set_attn_implementation("sdpa")  # the loss needs it to avoid waiting
        trainer = Trainer(student, loss)
        if paths.checkpoint(name).exists():
            trainer.load(paths.checkpoint(name))
        chosen = _material(pool.load(paths.text).conversations(), name, recipe)
        report = _learn(trainer, chosen, recipe, paths, name, deadline)
        paths.out.mkdir(parents=True, exist_ok=True)
        title = f"{Path(recipe.target).stem} {name}"
        if name == GENERALIST:
            if recipe.kind == "Q4_1":
                round_student(student, chosen[:_ROUNDING_CONVERSATIONS])
            report["bytes"] = write_drafter(
                paths.drafter(name), student, shortlist, Path(recipe.target).name, recipe.kind,
                title,
            )  # fmt: skip
        else:
            report["bytes"] = write_adapter(
                paths.drafter(name), student, paths.drafter(GENERALIST), _ADAPTER_KIND, title
            )
        report["parameters"] = read_gguf(paths.drafter(name)).num_parameters
        return report

    return stage


def as_served(path: Path) -> LlamaForCausalLM:
    """A finished drafter for further training, with the output layer for its shortlist."""
    source = locate(str(path))
    student: Any = load_cut_model(source, read_cut_config(source), torch.float32)
    student.lm_head = student.lm_head.linear
    return cast(LlamaForCausalLM, student)


def _learn(
    trainer: Trainer, text: Sequence[Conversation], recipe: DistillRecipe, paths: DistillPaths,
    name: str, deadline: float,
) -> Report:  # fmt: skip
    settings = recipe.generalist if name == GENERALIST else recipe.specialist
    order = plan([len(one.tokens) for one in text], settings)
    began = saved = logged = time.monotonic()
    smooth = torch.zeros(2, device=trainer.student.device)
    for batch in batches_from(text, order[trainer.num_steps :]):
        spent = (time.monotonic() - began) / max(1e-9, deadline - began)
        if spent >= 1:
            break
        now = trainer.step(batch, rate(trainer.num_steps, len(order), settings, spent))
        smooth += (torch.stack(now) - smooth) / 30
        if time.monotonic() - logged > _LOG_EVERY_S:
            overlap, equal = smooth.tolist()
            logged = time.monotonic()
            print(f"{name}: step {trainer.num_steps} of {len(order)}, acceptance {overlap:.3f}, "
                  f"equal best tokens {equal:.3f}", flush=True)  # fmt: skip
        if time.monotonic() - saved > _SAVE_EVERY_S:
            trainer.save(paths.checkpoint(name))
            saved = time.monotonic()
    trainer.save(paths.checkpoint(name))
    return {"steps": trainer.num_steps, "tokens": trainer.num_tokens}


def _material(text: Sequence[Conversation], name: str, recipe: DistillRecipe) -> list[Conversation]:
    """The training data of a drafter; a specialist's includes a share of the other domains."""
    if name == GENERALIST:
        return list(text)
    rng = np.random.default_rng(recipe.seed)
    return [one for one in text if one.domain == name or rng.random() < recipe.replay]


def evaluation_stage(recipe: DistillRecipe, paths: DistillPaths, device: str, _: float) -> Report:
    """Measure the finished drafters on the target's answers to held-out prompts."""
    slots = min(recipe.slots, sum(map(len, held_out().values())))
    teacher = load_teacher(recipe.target, device, slots=slots, slot_size=_SLOT_SIZE)
    template = Template.of(teacher.tokenizer)
    writer = Writer(
        teacher.feeder, teacher.head, template, slots=slots, max_answer=recipe.held_out_answer
    )
    by_temperature = {
        t: _held_out_answers(teacher, writer, template, t) for t in (0.0, ANSWER_TEMPERATURE)
    }
    matrices: dict[float, dict[str, dict[str, float]]] = {t: {} for t in by_temperature}
    for name in DRAFTERS:
        source = locate(str(paths.drafter(name)))
        drafter = load_cut_model(source, read_cut_config(source), torch.float32).to(device)
        for temperature, answers in by_temperature.items():
            equal = [(done.domain, matches(drafter, done, seed)) for done, seed in answers]
            matrices[temperature][name] = {
                domain: mean_accepted([e for d, e in equal if d == domain]) for domain in DOMAINS
            }
            print(f"T {temperature} {name}: {matrices[temperature][name]}", flush=True)
    return {
        str(temperature): {"matrix": matrices[temperature], "loop_share": _loop_shares(answers)}
        for temperature, answers in by_temperature.items()
    }


def _held_out_answers(
    teacher: Teacher, writer: Writer, template: Template, temperature: float
) -> list[tuple[Conversation, int | None]]:
    """Answers to the held-out prompts, with the seeds of their sampling."""
    turns = held_out_turns(teacher.tokenizer, temperature)
    return [(done, seed_of(done, template, turns)) for done in writer.write(turns)]


def _loop_shares(answers: Sequence[tuple[Conversation, int | None]]) -> dict[str, float]:
    return {
        domain: float(
            np.mean([
                loop_share(done.tokens[done.num_prompt :].tolist())
                for done, _ in answers if done.domain == domain
            ])
        )
        for domain in DOMAINS
    }  # fmt: skip
