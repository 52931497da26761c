"""transformers as a server: the given number of tokens, and the same texts for all settings."""

from __future__ import annotations

import os

import pytest

from edgecosine import zoo
from edgecosine.lab.bench import transformers_worker
from edgecosine.lab.bench.transformers_messages import (
    Setting,
    TransformersOrder,
    TransformersReady,
)
from edgecosine.lab.bench.transformers_process import stock_process
from edgecosine.lab.bench.transformers_worker import Stock
from edgecosine.lab.load_generator import make_jobs
from tests.support.mqtt import run_patiently

TOKENS = 12


@pytest.fixture(scope="module")
def stock() -> Stock:
    return Stock(ballast=1)


def test_batched_and_assisted_generation_give_the_same_texts_of_the_given_length(
    stock: Stock,
) -> None:
    domains, prompts = zip(*((d, texts[0]) for d, texts in zoo.prompts().items()), strict=True)
    batched, plain, *assisted = (
        stock.answer(TransformersOrder(kind, domains, prompts, TOKENS), setting)
        for kind, setting in (
            ("batched", Setting("float32")),
            ("plain", Setting("float32")),
            ("assisted", Setting("float32")),
            ("assisted", Setting("float32", 5)),
        )
    )
    for answers in (batched, plain, *assisted):
        assert [answer.text for answer in answers] == [answer.text for answer in batched]
        assert [answer.num_tokens for answer in answers] == [TOKENS] * len(prompts)
        assert all(0 < answer.first_text_s <= answer.elapsed_s for answer in answers)


def test_best_drafter_of_a_domain_is_its_specialist() -> None:
    assert zoo.best_drafters() == {domain: domain for domain in zoo.prompts()}


def test_quickest_settings_are_chosen_from_trials_of_all(
    stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers_worker, "TRIAL_TOKENS", 2)
    monkeypatch.setattr(transformers_worker, "Stock", lambda _: stock)
    monkeypatch.setattr("sys.argv", ["worker", "1"])
    ready, _ = transformers_worker.start(iter(()))
    assert isinstance(ready, TransformersReady)
    assert set(ready.settings) == {"batched", "plain", "assisted"}
    assert len(ready.trials_s) == 8


def test_process_answers_every_job_with_the_given_settings() -> None:
    jobs = make_jobs(3, offset=0, policy="hf-batched", temperature=0.0, max_tokens=TOKENS)
    chosen = TransformersReady({"batched": Setting("float32")}, {"batched, float32": 1.0})

    async def scenario() -> None:
        async with stock_process(1, str(min(os.sched_getaffinity(0))), chosen) as stock:
            assert stock.ready == chosen
            load = await stock.answer("batched", jobs, 2)
            assert [measured.domain for measured in load.answers] == [job.domain for job in jobs]
            assert load.num_tokens == 3 * TOKENS
            first, second, third = load.answers
            assert first.elapsed_s == second.elapsed_s
            assert first.elapsed_s + third.elapsed_s <= load.elapsed_s

    run_patiently(scenario())
