"""The whole training for a tiny target, from text to drafters that are served."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgecosine.engine.base import DraftWork
from edgecosine.engine.loading.cut_models import load_cut_model, read_cut_config
from edgecosine.engine.loading.load import load_drafter
from edgecosine.engine.loading.sources import locate
from edgecosine.engine.options import LoadOptions
from edgecosine.errors import ModelUnavailable
from edgecosine.lab.distill import training_text as pool
from edgecosine.lab.distill.adapters import adapt, changes
from edgecosine.lab.distill.conversations import (
    Conversation,
    ConversationTurn,
    Openers,
    Template,
    Writer,
)
from edgecosine.lab.distill.export import write_adapter, write_drafter
from edgecosine.lab.distill.losses import Settings, batch_of, plan, rate, states_of
from edgecosine.lab.distill.prompts import DOMAINS, held_out, opener
from edgecosine.lab.distill.recipe import DRAFTERS, DistillPaths, DistillRecipe, toy_recipe
from edgecosine.lab.distill.stages import as_served
from edgecosine.lab.distill.student import cut, shortlist_of
from edgecosine.lab.distill.teacher import load_stock, load_teacher
from edgecosine.lab.distill.train import STAGES, make_drafters
from edgecosine.protocol.wire.messages import SharedNoise
from tests.engine.loading.gguf_files import TOKENS, write_gguf


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


def recipe_of(target: Path) -> DistillRecipe:
    return replace(toy_recipe(), target=str(target), kind="Q8_0")


def test_training_writes_usable_drafters_and_resumes(target: Path, tmp_path: Path) -> None:
    recipe, places = recipe_of(target), DistillPaths(tmp_path / "scratch", target.parent)
    make_drafters(recipe, places, "cpu", ["text"])
    first = (places.text / "0000.npz").read_bytes()
    make_drafters(recipe, places, "cpu", [])
    assert (places.text / "0000.npz").read_bytes() == first
    report = json.loads(places.report.read_text())
    assert report.keys() == STAGES.keys()
    assert report["text"]["answer_tokens"] >= recipe.text_tokens
    card = (places.out / "README.md").read_text()
    for name in DRAFTERS:
        assert report[name]["steps"] > 0
        assert f"| {name} | {report[name]['steps']} |" in card
        engine, loaded = load_drafter(LoadOptions(model=str(places.drafter(name)), slots=2))
        work = DraftWork("a", (5, 6, 7), 4, 2, SharedNoise())
        (proposal,) = engine.draft([work])
        assert len(proposal.tokens) >= 4
        assert loaded.codec is not None
        assert loaded.codec.num_tokens == len(TOKENS)
    report["evaluation"]["0.0"]["matrix"][DRAFTERS[0]]["code"] = 0.0
    places.report.write_text(json.dumps(report))
    make_drafters(recipe, places, "cpu", [])
    assert json.loads(places.report.read_text()) == report


def test_resumed_training_gives_the_same_result(target: Path, tmp_path: Path) -> None:
    from edgecosine.lab.distill.losses import AcceptanceLoss
    from edgecosine.lab.distill.trainer import Trainer

    text = conversations(target, 24)
    stock = load_stock(str(target), torch.float32)
    tokens = torch.arange(64)
    head = stock.lm_head.weight.detach()[tokens]

    def trainer() -> Trainer:
        return Trainer(cut(stock, (0, 1), tokens), AcceptanceLoss(head))

    whole, before, after = trainer(), trainer(), trainer()
    batches = [batch_of(text[i : i + 6]) for i in range(0, 24, 6)]
    for batch in batches:
        whole.step(batch, 1e-3)
    for batch in batches[:2]:
        before.step(batch, 1e-3)
    before.save(tmp_path / "a.pt")
    after.load(tmp_path / "a.pt")
    for batch in batches[2:]:
        after.step(batch, 1e-3)
    assert after.num_steps == whole.num_steps == 4
    for one, other in zip(whole.student.parameters(), after.student.parameters(), strict=True):
        assert torch.equal(one, other)


def test_student_recovers_the_loss_of_its_target(target: Path) -> None:
    """A student of all layers equals the target, so training must recover its initial loss."""
    from edgecosine.lab.distill.losses import AcceptanceLoss
    from edgecosine.lab.distill.trainer import Trainer

    stock = load_stock(str(target), torch.float32)
    tokens = torch.arange(len(TOKENS))
    trainer = Trainer(cut(stock, (0, 1), tokens), AcceptanceLoss(stock.lm_head.weight.detach()))
    batch = batch_of(conversations(target, 12))
    overlap, equal = trainer.step(batch, 0.0)
    assert overlap > 0.9
    assert equal > 0.8
    trainer.student.model.layers[1].mlp.down_proj.weight.data.zero_()
    hurt, _ = trainer.step(batch, 3e-3)
    assert hurt < overlap
    for _ in range(12):
        healed, _ = trainer.step(batch, 3e-3)
    assert healed > hurt


def test_student_has_equal_states_with_the_attention_of_a_gpu(target: Path) -> None:
    student = cut(load_stock(str(target), torch.float32), (0, 1), torch.arange(64))
    tokens = torch.arange(3, 43).view(2, 20)
    with torch.no_grad():
        stock = states_of(student, tokens)
        student.set_attn_implementation("sdpa")
        torch.testing.assert_close(states_of(student, tokens), stock, atol=1e-4, rtol=1e-4)


def conversations(target: Path, count: int) -> list[Conversation]:
    teacher = load_teacher(str(target), "cpu", slots=4, slot_size=256)
    writer = Writer(
        teacher.feeder, teacher.head, Template.of(teacher.tokenizer), slots=4, max_answer=16
    )
    turns = [
        ConversationTurn("facts", (20 + n, 30, 40), 0.8 * (n % 2), is_whole=True)
        for n in range(count)
    ]
    return list(writer.write(turns))


def test_answers_are_the_targets_own(target: Path) -> None:
    """Each greedy answer is the stock model's continuation, also in reused slots."""
    stock = load_stock(str(target), torch.bfloat16)
    for done in conversations(target, 9):
        ids = torch.from_numpy(done.tokens.astype(np.int64))
        with torch.inference_mode():
            logits = stock(input_ids=ids[None, :-1]).logits[0, done.num_prompt - 1 :].float()
            states = torch.from_numpy(done.states.astype(np.float32))
            ours = states @ stock.lm_head.weight.float().T
        torch.testing.assert_close(ours, logits, atol=0.3, rtol=0.1)
        if done.temperature == 0.0:
            best = logits.max(-1).values
            chosen = logits.gather(1, ids[done.num_prompt :, None])[:, 0]
            assert (best - chosen).max() < 0.3


def test_grid_generates_the_same_text_as_flat_passes(target: Path) -> None:
    """Greedy answers, by one token of each slot in a step or all at once, with reused slots."""
    from edgecosine.engine.slot_model import SlotModel
    from edgecosine.lab.distill.batch_runners import FlatFeeder, GridFeeder

    tokenizer = load_teacher(str(target), "cpu", slots=1, slot_size=64).tokenizer
    turns = [
        ConversationTurn("facts", (20 + n, *range(30, 31 + n)), 0.0, is_whole=True)
        for n in range(9)
    ]
    turns += [ConversationTurn("code", (40 + n, 50), 0.6, is_whole=True, seed=n) for n in range(3)]
    written = list[dict[bytes, Conversation]]()
    for kind in ("flat", "grid"):
        stock = load_stock(str(target), torch.float32)
        head = stock.lm_head.weight.detach().clone()
        feeder: FlatFeeder | GridFeeder
        if kind == "grid":
            feeder = GridFeeder(stock.model, slots=5, slot_size=256)
        else:
            stock.lm_head.weight = torch.nn.Parameter(torch.eye(head.shape[1]))
            model = SlotModel(stock, slots=5, slot_size=256, threads=1, kernels=None)
            feeder = FlatFeeder(model)
        writer = Writer(
            feeder, lambda states, head=head: states @ head.T, Template.of(tokenizer),
            slots=5, max_answer=16,
        )  # fmt: skip
        done = list(writer.write(turns))
        written.append({one.tokens[: one.num_prompt].tobytes(): one for one in done})
    flat, grid = written
    assert flat.keys() == grid.keys()
    assert len(flat) == len(turns)
    for prompt, one in flat.items():
        assert one.tokens.tolist() == grid[prompt].tokens.tolist()
        np.testing.assert_allclose(one.states, grid[prompt].states, atol=2e-2)


def test_trainings_end_at_their_time_limit(target: Path, tmp_path: Path) -> None:
    recipe, places = recipe_of(target), DistillPaths(tmp_path / "scratch", tmp_path / "out")
    make_drafters(recipe, places, "cpu", [], minutes=0.0)
    report = json.loads(places.report.read_text())
    assert report.keys() == STAGES.keys()
    assert 0 < report["text"]["answer_tokens"] < recipe.text_tokens
    assert report[DRAFTERS[0]]["steps"] == 0


def test_shortlist_has_the_most_probable_tokens_and_end_tokens() -> None:
    head = torch.eye(8)
    states = 10 * torch.eye(8)[[1, 1, 5, 5, 5, 6]]
    assert shortlist_of(states, head, 3, [0]).tolist() == [0, 1, 5]


def test_batches_contain_every_conversation_once_in_each_epoch() -> None:
    lengths = [10 + 7 * n % 50 for n in range(40)]
    order = plan(lengths, Settings(epochs=2.0, learning_rate=1.0, batch_tokens=200))
    seen = [i for batch in order for i in batch]
    assert sorted(seen) == sorted([*range(40), *range(40)])
    assert all(len(b) * max(lengths[i] for i in b) <= 200 for b in order)


def test_learning_rate_rises_stays_and_falls_to_zero() -> None:
    settings = Settings(epochs=1, learning_rate=2.0, warm_up=10, decay=0.5)
    rates = [rate(step, 100, settings) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[10:50] == [2.0] * 40
    assert rates[100] == 0.0
    assert rate(50, 100, settings, spent=0.75) == pytest.approx(1.0)
    assert rate(50, 100, settings, spent=1.1) == 0.0


def test_shards_survive_a_round_trip(target: Path, tmp_path: Path) -> None:
    text = conversations(target, 5)
    pool.save(tmp_path / "0.npz", text[:3])
    pool.save(tmp_path / "1.npz", text[3:])
    back = pool.load(tmp_path).conversations()
    assert [one.tokens.tolist() for one in back] == [one.tokens.tolist() for one in text]
    assert all(np.array_equal(a.states, b.states) for a, b in zip(back, text, strict=True))


def test_openers_balance_the_domains_and_repeat_no_held_out_prompt(target: Path) -> None:
    import random

    prompts = held_out()
    assert prompts.keys() == set(DOMAINS)
    chance = random.Random(1)
    for domain in DOMAINS:
        assert not {opener(domain, chance) for _ in range(300)} & set(prompts[domain])
    tokenizer = load_teacher(str(target), "cpu", slots=1, slot_size=64).tokenizer
    openers = Openers(tokenizer, 1)
    assert {turn.domain for turn, _ in zip(openers, range(4), strict=False)} == set(DOMAINS)


def test_damaged_drafter_is_refused_with_the_missing_part(target: Path, tmp_path: Path) -> None:
    stock = load_stock(str(target), torch.float32)
    student = cut(stock, (0, 1), torch.arange(16))
    path = target.with_name("damaged.gguf")
    write_drafter(path, student, torch.arange(16) + 10_000, target.name, "Q8_0", "damaged")
    with pytest.raises(ModelUnavailable, match=r"names tokens that tiny\.gguf lacks"):
        load_drafter(LoadOptions(model=str(path)))
    write_drafter(path, student, torch.arange(16), "other.gguf", "Q8_0", "damaged")
    with pytest.raises(ModelUnavailable, match=r"needs 'other\.gguf', which is neither"):
        load_drafter(LoadOptions(model=str(path)))


def test_specialist_equals_the_generalist_with_its_changes(target: Path) -> None:
    stock = load_stock(str(target), torch.float32)
    tokens = torch.arange(0, len(TOKENS), 2)
    general, special = (target.with_name(f"{name}.gguf") for name in ("general", "special"))
    write_drafter(general, cut(stock, (0, 1), tokens), tokens, target.name, "Q8_0", "general")
    student = as_served(general)
    adapt(student, 32)
    with torch.no_grad():
        for _, _, outer in changes(student):
            outer.normal_(std=0.1)
    write_adapter(special, student, general, "F32", "special")
    ids = torch.tensor([[5, 9, 20, 33, 7]])
    source = locate(str(special))
    loaded = load_cut_model(source, read_cut_config(source), torch.float32)
    with torch.inference_mode():
        wanted, given = student(ids).logits, loaded(ids).logits[..., tokens]
        untouched = as_served(general)(ids).logits
    torch.testing.assert_close(given, wanted, atol=1e-4, rtol=1e-4)
    assert (given - untouched).abs().max() > 0.1
    write_drafter(general, cut(stock, (0, 1), tokens), tokens, target.name, "Q4_0", "other")
    with pytest.raises(ModelUnavailable, match=r"was made for another version of general\.gguf"):
        load_drafter(LoadOptions(model=str(special)))


def test_drafters_that_name_each_other_are_refused(target: Path) -> None:
    stock = load_stock(str(target), torch.float32)
    one, other = (target.with_name(f"{name}.gguf") for name in ("one", "other"))
    student = cut(stock, (0, 1), torch.arange(16))
    write_drafter(one, student, torch.arange(16), other.name, "Q8_0", "one")
    write_drafter(other, student, torch.arange(16), one.name, "Q8_0", "other")
    with pytest.raises(ModelUnavailable, match="chain of bases"):
        load_drafter(LoadOptions(model=str(one)))


def test_fresh_prompts_differ_and_alternate_the_domains(target: Path) -> None:
    from edgecosine.lab.distill.fresh_prompts import fresh_prompts

    prompts = fresh_prompts(str(target), 10)
    assert [domain for domain, _ in prompts] == [DOMAINS[n % len(DOMAINS)] for n in range(10)]
    assert len({text for _, text in prompts}) == 10
    assert prompts == fresh_prompts(str(target), 10)


def test_generation_of_prompts_ends_when_it_is_cancelled(target: Path) -> None:
    from edgecosine.lab.distill.fresh_prompts import write_prompts

    async def cancel_it() -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as limit:

            def stop(_: str) -> None:
                loop.call_soon_threadsafe(limit.reschedule, 0.0)

            await write_prompts(str(target), 10**9, stop)

    with pytest.raises(TimeoutError):
        asyncio.run(cancel_it())  # it waits for the thread
