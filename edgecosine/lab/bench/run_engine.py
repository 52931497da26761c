"""Compares the engine with transformers on the same weights and one thread.

The two sides of each ratio alternate in one process, so that a drift of the machine's speed affects
both. transformers runs in float32 or bfloat16, whichever is faster. The target has ballast, as in
the demo.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from edgecosine import zoo
from edgecosine.engine.base import (
    DraftEngine,
    DraftWork,
    TargetEngine,
    VerifyWork,
    expect_verified,
)
from edgecosine.engine.loading.ballast import add_ballast
from edgecosine.engine.loading.load import load_drafter, load_target
from edgecosine.engine.options import LoadOptions
from edgecosine.engine.process_memory import give_back_memory
from edgecosine.lab.bench.memory_use import measure_memory, memory_in_use
from edgecosine.lab.engine_calls import forked_tree, prefill
from edgecosine.lab.figures import Figure, Keep, Notify, counted, interval
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.messages import SharedNoise
from edgecosine.protocol.wire.tree import EMPTY_TREE, TokenTree

PROMPT_TOKENS = 192
SESSIONS = 8
STEPS = 6
"""Steps, rounds or draft tokens in each timed call."""
NEW_TOKENS = 32
ROUNDS = 10_000
DTYPES = (torch.float32, torch.bfloat16)
WARM_ROUNDS = 300

Timed = Callable[[], float]
"""Runs a piece of work and returns its seconds."""


@dataclass(frozen=True, slots=True)
class Race:
    """A ratio of two timed calls, `over` / `under`."""

    name: str
    over: Timed
    under: Timed


def run_engine_bench(ballast: int, repeats: int, notify: Notify, keep: Keep) -> dict[str, Figure]:
    """Run all races; returns their figures. Figures and runs are saved after each race."""
    notify("loading the target and a drafter, ours and transformers'")
    engine, loaded = load_target(
        LoadOptions(zoo.TARGET, threads=1, ballast=ballast, slots=SESSIONS)
    )
    drafter, _ = load_drafter(LoadOptions(zoo.drafter_names()[0], threads=1, slots=SESSIONS))
    stock = [_stock_model(zoo.TARGET, ballast, dtype) for dtype in DTYPES]
    stock_drafter = [_stock_model(zoo.drafter_names()[0], 1, dtype) for dtype in DTYPES]
    assert loaded.codec is not None
    prompts = _cut_prompts(loaded.codec.encode)
    races = (
        Race(
            "verify_1x8_over_stock_step",
            _rounds(engine, prompts[:1], 8),
            _quickest([_decoding_steps(model, prompts[0]) for model in stock]),
        ),
        Race(
            "plain_8_over_hf_batched",
            _quickest([_batched_generate(model, prompts) for model in stock]),
            _plain(engine, prompts),
        ),
        Race(
            "verify_8x4_over_forward",
            _rounds(engine, prompts, 4),
            _quickest([_forward(model, SESSIONS, 5) for model in stock]),
        ),
        Race(
            "verify_8x8_over_forward",
            _rounds(engine, prompts, 8),
            _quickest([_forward(model, SESSIONS, 9) for model in stock]),
        ),
        Race("drafter_8_over_1", _drafts(drafter, prompts), _drafts(drafter, prompts[:1])),
        Race(
            "drafter_step_over_stock",
            _drafts(drafter, prompts[:1]),
            _quickest([_decoding_steps(model, prompts[0]) for model in stock_drafter]),
        ),
    )
    figures: dict[str, Figure] = {}
    runs: list[dict[str, Any]] = []
    for race in races:
        race.over(), race.under()
        times = [(race.over(), race.under()) for _ in range(repeats)]
        figures[race.name] = interval([over / under for over, under in times])
        runs += [{"race": race.name, "over_s": over, "under_s": under} for over, under in times]
        keep(figures, runs)
        notify(f"{race.name}: {figures[race.name].value:.2f}")
    notify("measuring the peak memory of a load in a separate process")
    figures["memory_over_ideal"] = _memory_over_ideal(ballast, runs)
    keep(figures, runs)
    notify(f"watching memory over {ROUNDS} rounds")
    light, _ = load_target(LoadOptions(zoo.TARGET, threads=1, slots=2))
    figures["memory_growth_mib"] = grown_memory(light, prompts[0], ROUNDS)
    keep(figures, runs)
    return figures


def _quickest(options: Sequence[Timed]) -> Timed:
    """The option that takes the least time on this machine."""
    return min(options, key=lambda timed: min(timed() for _ in range(3)))


def _stock_model(name: str, ballast: int, dtype: torch.dtype) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(zoo.DIRECTORY / name, dtype=dtype)
    if ballast > 1:
        add_ballast(model, ballast)
    return model.eval()


def _cut_prompts(encode: Callable[[str], list[int]]) -> list[list[int]]:
    texts = itertools.chain.from_iterable(zoo.prompts().values())
    tokens = list(itertools.chain.from_iterable(map(encode, texts)))
    return [tokens[i * PROMPT_TOKENS : (i + 1) * PROMPT_TOKENS] for i in range(SESSIONS)]


def _work(key: int, tokens: Iterable[int], tree: TokenTree = EMPTY_TREE) -> VerifyWork:
    return VerifyWork(str(key), tuple(tokens), PROMPT_TOKENS, tree, Sampling())


def _prefill(engine: TargetEngine, prompts: Sequence[Sequence[int]]) -> None:
    works = [_work(key, prompt) for key, prompt in enumerate(prompts)]
    prefill(engine, works)


def _next_token(engine: TargetEngine, key: int, tokens: Sequence[int]) -> int:
    [outcome] = engine.step([_work(key, tokens)]).outcomes
    verified = expect_verified(outcome)
    assert verified is not None
    return verified.bonus


def _rounds(engine: TargetEngine, prompts: list[list[int]], num_nodes: int) -> Timed:
    """Times whole rounds on trees with a wrong and a right branch: pass, sampling, walk and
    compaction."""
    _prefill(engine, prompts)
    works = []
    for key, prompt in enumerate(prompts):
        right: list[int] = []
        while len(right) < num_nodes // 2:
            right.append(_next_token(engine, key, prompt + right))
        works.append(_work(key, prompt, forked_tree([(t + 1) % 1000 for t in right], right)))

    def timed() -> float:
        _prefill(engine, prompts)
        started = time.perf_counter()
        for _ in range(STEPS):
            engine.step(works)
        return time.perf_counter() - started

    return timed


def _plain(engine: TargetEngine, prompts: list[list[int]]) -> Timed:
    """Times prompts and answers of all sessions, without drafts."""

    def timed() -> float:
        for key in range(len(prompts)):
            engine.release(str(key))
        # The first token differs each time, so that the cache has no prefix of a former run.
        sequences = [[chance, *prompt[1:]] for chance, prompt in zip(fresh, prompts, strict=False)]
        started = time.perf_counter()
        while any(len(sequence) < PROMPT_TOKENS + NEW_TOKENS for sequence in sequences):
            works = [_work(key, sequence) for key, sequence in enumerate(sequences)]
            for sequence, outcome in zip(sequences, engine.step(works).outcomes, strict=True):
                if (verified := expect_verified(outcome)) is not None:
                    sequence.append(verified.bonus)
        return time.perf_counter() - started

    fresh = itertools.cycle(range(1, 1000))
    return timed


def _batched_generate(model: Any, prompts: list[list[int]]) -> Timed:
    @torch.inference_mode()
    def timed() -> float:
        started = time.perf_counter()
        model.generate(
            torch.tensor(prompts),
            attention_mask=torch.ones(len(prompts), PROMPT_TOKENS, dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
        return time.perf_counter() - started

    return timed


def _decoding_steps(model: Any, prompt: list[int]) -> Timed:
    """Times steps of one token by transformers alone, on its own cache."""

    @torch.inference_mode()
    def timed() -> float:
        cache = DynamicCache()
        model(torch.tensor([prompt]), past_key_values=cache, use_cache=True)
        token = torch.tensor([[prompt[-1]]])
        started = time.perf_counter()
        for _ in range(STEPS):
            token = model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        return time.perf_counter() - started

    return timed


def _forward(model: Any, batch: int, width: int) -> Timed:
    """Times only the forward pass of a shape, without cache, sampling and walk."""

    @torch.inference_mode()
    def timed() -> float:
        tokens = torch.ones(batch, width, dtype=torch.long)
        started = time.perf_counter()
        for _ in range(STEPS):
            model(tokens, use_cache=False)
        return time.perf_counter() - started

    return timed


def _drafts(drafter: DraftEngine, prompts: list[list[int]]) -> Timed:
    def timed() -> float:
        # The last token differs each time, so that the cache has nothing of a former run.
        works = [
            DraftWork(str(key), (*prompt, chance), STEPS, 1, SharedNoise())
            for key, (prompt, chance) in enumerate(zip(prompts, fresh, strict=False))
        ]
        started = time.perf_counter()
        drafter.draft(works)
        return time.perf_counter() - started

    fresh = itertools.cycle(range(1, 1000))
    return timed


def grown_memory(engine: TargetEngine, prompt: list[int], rounds: int) -> Figure:
    """Growth of memory in MiB over `rounds` rounds, after a warm-up with all shapes: sessions start
    and end, contexts grow, trees fork."""
    sizes = []
    for num_rounds in (WARM_ROUNDS, rounds):
        for number in range(num_rounds):
            length = 16 + number % 100
            tree = forked_tree([1, 2, 3][: 1 + number % 3], [4, 5, 6][: 1 + number % 3])
            _prefill(engine, [prompt[:length]])
            engine.step([_work(number // 100, prompt[:length], tree)])
            engine.release(str(number // 100 - 1))
        give_back_memory()
        sizes.append(memory_in_use() / (1 << 20))
    grown = sizes[1] - sizes[0]
    return counted(grown, "MiB")


def _memory_over_ideal(ballast: int, runs: list[dict[str, Any]]) -> Figure:
    options = LoadOptions(zoo.TARGET, threads=1, ballast=ballast, slots=SESSIONS, context=512)
    use = measure_memory(options, rounds=2 * SESSIONS)
    runs.append({"memory": asdict(use)})
    return counted(use.over_ideal, "ratio")
