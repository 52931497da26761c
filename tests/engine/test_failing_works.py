"""A failing work does not affect the other works of its batch, nor later ones."""

from __future__ import annotations

from typing import Any

import pytest

from edgecosine.engine.base import DraftWork, FailedWork, Prefilling, VerificationResult, VerifyWork
from edgecosine.engine.cpu.kernel_library import Kernels, KernelsUnavailable, load_kernels
from edgecosine.engine.cpu.native_llama import NativeLlama
from edgecosine.engine.cuda.padded_model import PaddedModel
from edgecosine.engine.draft.drafter import TransformerDrafter
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.slot_model import SlotModel
from edgecosine.engine.target import target as judging
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.errors import NoLogits
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.messages import SharedNoise
from edgecosine.protocol.wire.tree import EMPTY_TREE, TokenTree, chain
from tests.engine.decoding import decode, nothing
from tests.engine.models import VOCABULARY, build, prompt_of

BAD = 5
"""A token whose row of the embedding is NaN."""
SLOT_SIZE = 160
WAYS = ("fused", "layers", "plain", "static")


def _kernels() -> Kernels:
    try:
        return load_kernels()
    except KernelsUnavailable as reason:
        pytest.skip(str(reason))


def _model(way: str, slots: int = 2) -> ForwardModel:
    built: Any = build("llama")
    built.model.embed_tokens.weight.data[BAD] = float("nan")
    if way == "fused":
        return NativeLlama(built, slots=slots, slot_size=SLOT_SIZE, threads=1, kernels=_kernels())
    if way == "static":
        return PaddedModel(built, slots=slots, slot_size=SLOT_SIZE, capture=None)
    kernels = None if way == "plain" else _kernels()
    return SlotModel(built, slots=slots, slot_size=SLOT_SIZE, threads=1, kernels=kernels)


def _target(way: str = "plain", slots: int = 2) -> TransformerTarget:
    return TransformerTarget(
        _model(way, slots), slots=slots, max_context=128, chunk=16, num_tokens=VOCABULARY
    )


def _prompt(length: int, seed: int = 0) -> list[int]:
    return [token if token != BAD else BAD + 1 for token in prompt_of(length, seed)]


def _work(key: str, tokens: list[int], how: Sampling | None = None) -> VerifyWork:
    return VerifyWork(key, tuple(tokens), len(tokens), EMPTY_TREE, how or Sampling())


def _outcome(
    engine: TransformerTarget, *works: VerifyWork
) -> list[VerificationResult | FailedWork]:
    """The outcomes of works, stepped until none is prefilling."""
    found: dict[str, VerificationResult | FailedWork] = {}
    while len(found) < len(works):
        batch = [work for work in works if work.key not in found]
        for work, outcome in zip(batch, engine.step(batch).outcomes, strict=True):
            if not isinstance(outcome, Prefilling):
                found[work.key] = outcome
    return [found[work.key] for work in works]


def _first(prompt: list[int]) -> int:
    """The first token of the answer when run alone."""
    [[token]], _ = decode(_target(), [prompt], 1, [nothing])
    return token


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "how",
    [
        Sampling(),
        Sampling(temperature=1.0, seed=3),
        Sampling(temperature=1.0, top_p=0.9),
        Sampling(temperature=1.0, top_k=1),
        Sampling(repetition_penalty=1.1),
    ],
    ids=str,
)
def test_request_with_nan_logits_fails_alone(way: str, how: Sampling) -> None:
    engine = _target(way)
    good, short = _prompt(40), _prompt(7, seed=2)
    bad = [*_prompt(20, seed=1), BAD, *_prompt(50, seed=1)]
    failed, result = _outcome(engine, _work("bad", bad, how), _work("good", good))
    assert isinstance(failed, FailedWork)
    assert isinstance(failed.error, NoLogits)
    assert isinstance(result, VerificationResult)
    assert result.bonus == _first(good)
    engine.release("bad")
    [after] = _outcome(engine, _work("after", short))
    assert isinstance(after, VerificationResult)
    assert after.bonus == _first(short)


@pytest.mark.parametrize("way", WAYS)
def test_draft_token_with_nan_logits_changes_no_answer(way: str) -> None:
    prompt = _prompt(30)
    [answer], _ = decode(_target(), [prompt], 12, [nothing])

    def drafts(sequence: list[int]) -> TokenTree:
        coming = answer[len(sequence) - len(prompt) :][:2]
        tokens = (BAD, *coming)
        parents = (-1, -1, 1)[: len(tokens)]
        depths = (1, 1, 2)[: len(tokens)]
        return TokenTree(tokens, parents, (1.0,) * len(tokens), depths)

    [speculated], accepted = decode(_target(way), [prompt], 12, [drafts])
    assert speculated == answer
    if way in ("fused", "layers"):
        assert accepted > 5


def test_failing_draw_fails_one_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> int:
        raise ZeroDivisionError(arguments[1])

    monkeypatch.setattr(judging, "draw", fail)
    good = _prompt(9)
    failed, result = _outcome(
        _target(), _work("bad", _prompt(5, 1), Sampling(temperature=1.0)), _work("good", good)
    )
    assert isinstance(failed, FailedWork)
    assert isinstance(failed.error, ZeroDivisionError)
    assert isinstance(result, VerificationResult)
    assert result.bonus == _first(good)


def test_failed_forward_pass_marks_no_kv_positions_as_filled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = _model("plain")
    engine = TransformerTarget(model, slots=2, max_context=128, chunk=16)
    prompts = [_prompt(40), _prompt(20, seed=1)]
    works = [_work(str(number), prompt) for number, prompt in enumerate(prompts)]
    engine.step(works)
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step(works)
    results = _outcome(engine, *works)
    assert [getattr(result, "bonus", None) for result in results] == [*map(_first, prompts)]


@pytest.mark.parametrize("token", [VOCABULARY, -1, 1 << 30])
def test_invalid_token_fails_one_request_only(token: int) -> None:
    good = _prompt(9)
    right = _first(good)
    works = [
        _work("prompt", [1, token, 2]),
        VerifyWork("tree", (1, 2), 2, chain((token,)), Sampling()),
        VerifyWork("long", tuple(_prompt(SLOT_SIZE - 2)), 2, chain((7, 7, 7)), Sampling()),
        _work("good", good),
    ]
    engine = _target("fused", slots=4)
    *failed, result = engine.step(works).outcomes
    assert all(isinstance(each, FailedWork) for each in failed)
    assert isinstance(result, VerificationResult)
    assert result.bonus == right
    assert engine.step(works[:1]).num_rows == 0


@pytest.mark.parametrize(("token", "position"), [(VOCABULARY, 3), (-1, 3), (7, SLOT_SIZE)])
def test_kernels_refuse_tokens_and_positions_beyond_the_model(token: int, position: int) -> None:
    rows = judging.RowBuilder()
    rows.add_sequence(0, position, [token])
    with pytest.raises(IndexError, match="beyond"):
        _model("fused").forward(rows.build(), [0])


@pytest.mark.parametrize("position", [SLOT_SIZE, 1 << 20])
def test_layers_refuse_kv_positions_beyond_the_cache(position: int) -> None:
    rows = judging.RowBuilder()
    rows.add_sequence(0, position, [7])
    with pytest.raises(IndexError, match="beyond"):
        _model("layers").forward(rows.build(), [0])


@pytest.mark.parametrize("way", ["fused", "layers", "plain"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafter_with_nan_logits_returns_an_empty_draft(way: str, temperature: float) -> None:
    kernels = None if way == "plain" else _kernels()
    engine = TransformerDrafter(_model(way, 3), slots=3, max_context=100, kernels=kernels)
    noise = SharedNoise(temperature=temperature)
    bad, good = [*_prompt(9, 1), BAD, 9], _prompt(9)
    works = [
        DraftWork("bad", bad, 3, 2, noise),
        DraftWork("good", good, 3, 2, noise),
        DraftWork("ahead", good, 3, 2, noise, ahead=chain((BAD, 7))),
    ]
    for _ in range(2):
        nothing_, some, _ = engine.draft(works)
        assert nothing_.tokens == ()
        assert len(some.tokens) >= 3
        assert all(0.0 <= confidence <= 1.001 for confidence in some.confidences)
        works = [DraftWork(w.key, [*w.tokens, 11], 3, 2, noise) for w in works]


def test_failed_draft_step_marks_no_kv_positions_as_filled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = _model("plain")
    engine = TransformerDrafter(model, slots=2, max_context=100)
    work = DraftWork("a", _prompt(30), 3, 2, SharedNoise())
    right = TransformerDrafter(_model("plain"), slots=2, max_context=100).draft([work])
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.draft([work])
    assert engine.draft([work])[0].tokens == right[0].tokens
