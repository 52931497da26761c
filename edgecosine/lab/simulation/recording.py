"""Records the texts and drafts of a model: `python -m edgecosine.lab.simulation.recording`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest

import click
import numpy as np

from edgecosine import models
from edgecosine.engine.base import (
    DraftEngine,
    DraftResult,
    DraftWork,
    TargetEngine,
    VerifyWork,
    expect_verified,
)
from edgecosine.engine.loading.load import load_drafter, load_target
from edgecosine.engine.options import LoadOptions
from edgecosine.engine.tokenizer import TextCodec
from edgecosine.lab.demo_models import Scene, chat_scene, zoo_scene
from edgecosine.lab.distill.fresh_prompts import fresh_prompts
from edgecosine.lab.engine_calls import quiet_transformers
from edgecosine.lab.simulation.texts import RECORDED, ZOO, Texts, path_of
from edgecosine.node.target.shared_noise import noise_of
from edgecosine.protocol.api.request import ChatMessage, Sampling
from edgecosine.protocol.wire.messages import SharedNoise, pack_shares
from edgecosine.protocol.wire.tree import EMPTY_TREE

PROMPTS = 31
"""Number of prompts for each domain."""
ANSWER = 144
"""Recorded tokens of each answer: 128, and those beyond them that drafts may contain."""
SEED = 1
"""Seed of the first prompt's noise; each further prompt has the next seed."""
_GUESSES, _BATCH = 4, 16

Prompts = Sequence[tuple[str, str]]
"""Each as its domain and text."""


def record(
    name: str, scene: Scene, temperature: float, prompts: Prompts, answer: int = ANSWER
) -> Texts:
    """Record the target's answers, and every drafter's drafts at every position; takes minutes.

    Above temperature 0 drafters sample with the target's noise, as in a cluster. Models read whole
    prompts, but the tokens with which a chat template begins all of them are not recorded, since a
    target has them in its cache. Only answers in a chat have an end.

    Raises the errors of `load_target`.
    """
    engine, loaded = load_target(LoadOptions(scene.target, threads=1, slots=_BATCH))
    assert loaded.codec is not None
    whole = [_encoded(loaded.codec, text, is_chat=scene.is_chat) for _, text in prompts]
    samplings = [Sampling(temperature=temperature, seed=SEED + n) for n in range(len(whole))]
    answers = list(_answers(engine, whole, samplings, answer))
    names = [model for model in scene.drafters if model != models.NGRAM]
    guesses = np.zeros((len(names), len(whole), answer, _GUESSES), np.uint16)
    shares = np.zeros(guesses.shape, np.uint8)
    prompt_scores = np.zeros(guesses.shape[:2], np.float32)
    for which, model in enumerate(names):
        drafter, _ = load_drafter(LoadOptions(model, threads=1, slots=_BATCH))
        prompt_scores[which] = [_prompt_score(drafter, prompt) for prompt in whole]
        for text, place, drafted in _drafts(drafter, whole, answers, samplings):
            roots = _roots(drafted)
            guesses[which, text, place] = [drafted.tokens[node] for node in roots]
            packed = pack_shares([drafted.confidences[node] for node in roots])
            shares[which, text, place] = np.frombuffer(packed, np.uint8)
        click.echo(f"{model}: {len(whole)} texts", err=True)
    shared = _num_shared(whole) if scene.is_chat else 0
    end_tokens = loaded.codec.eos_tokens if scene.is_chat else frozenset[int]()
    return Texts(
        prompts=tuple(tuple(prompt[shared:]) for prompt in whole),
        answers=np.array(answers, np.uint16),
        ends=tuple(_end(each, end_tokens) for each in answers),
        domains=tuple(domain for domain, _ in prompts),
        drafters=tuple(model.rpartition("/")[2] for model in names),
        guesses=guesses,
        shares=shares,
        prompt_scores=prompt_scores,
        temperature=temperature,
        name=name,
    )


def scene_of(name: str) -> Scene:
    """The models and held-out prompts of a recording.

    Raises ModelUnavailable.
    """
    return zoo_scene(1) if name == ZOO else chat_scene()


def choose_prompts(scene: Scene, number: int = PROMPTS) -> Prompts:
    """`number` prompts of each domain, as (domain, text).

    If a chat has fewer held-out ones, the target writes every second prompt as it wrote those of
    the training, with seeds that the training did not use.

    Raises the errors of `fresh_prompts`.
    """
    found = {domain: list(texts) for domain, texts in scene.prompts.items()}
    if lacking := max(0, number - min(map(len, found.values()))):
        written = fresh_prompts(scene.target, lacking * len(found))
        for domain, texts in found.items():
            fresh = [text for other, text in written if other == domain]
            pairs = chain.from_iterable(zip_longest(texts, fresh))
            found[domain] = [text for text in pairs if text is not None]
    return [(domain, text) for domain, texts in found.items() for text in texts[:number]]


def _encoded(codec: TextCodec, text: str, *, is_chat: bool) -> list[int]:
    return codec.encode_chat([ChatMessage("user", text)]) if is_chat else codec.encode(text)


def _num_shared(prompts: Sequence[Sequence[int]]) -> int:
    """Number of tokens with which all prompts begin."""
    return next(n for n, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1)


def _end(answer: Sequence[int], end_tokens: frozenset[int]) -> int:
    return next((n for n, token in enumerate(answer, 1) if token in end_tokens), len(answer))


def _answers(
    engine: TargetEngine, prompts: Sequence[list[int]], samplings: Sequence[Sampling], length: int
) -> Iterator[list[int]]:
    for group in _groups(len(prompts)):
        texts = {n: list(prompts[n]) for n in group}
        while todo := [n for n in group if len(texts[n]) < len(prompts[n]) + length]:
            works = [
                VerifyWork(f"{n}", texts[n], len(prompts[n]), EMPTY_TREE, samplings[n])
                for n in todo
            ]
            for n, outcome in zip(todo, engine.step(works).outcomes, strict=True):
                if (verified := expect_verified(outcome)) is not None:
                    texts[n].append(verified.bonus)
        for n in group:
            engine.release(f"{n}")
            yield texts[n][len(prompts[n]) :]


def _drafts(
    drafter: DraftEngine,
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    samplings: Sequence[Sampling],
) -> Iterator[tuple[int, int, DraftResult]]:
    """A drafter's drafts of one token, as (number of the text, place in its answer, draft)."""
    for group in _groups(len(prompts)):
        for place in range(len(answers[0])):
            works = [
                DraftWork(
                    f"{n}", (*prompts[n], *answers[n][:place]), 1, 1, noise_of(samplings[n])
                )
                for n in group
            ]  # fmt: skip
            for n, drafted in zip(group, drafter.draft(works), strict=True):
                yield n, place, drafted
        for n in group:
            drafter.release(f"{n}")


def _groups(number: int) -> Iterator[range]:
    for start in range(0, number, _BATCH):
        yield range(start, min(start + _BATCH, number))


def _prompt_score(drafter: DraftEngine, prompt: Sequence[int]) -> float:
    """The drafter's negative log-likelihood of a prompt, in nats per token."""
    [drafted] = drafter.draft([DraftWork("prompt score", tuple(prompt), 1, 1, SharedNoise())])
    drafter.release("prompt score")
    return drafted.prompt_score.nll


def _roots(drafted: DraftResult) -> list[int]:
    """The nodes of a draft that guess the next token, most probable first."""
    above = drafted.parents or range(-1, len(drafted.tokens) - 1)
    return [node for node, parent in enumerate(above) if parent == -1][:_GUESSES]


@click.command()
@click.option("--model", "name", type=click.Choice(tuple(RECORDED)), default=ZOO, show_default=True)
def _main(name: str) -> None:
    quiet_transformers()
    scene = scene_of(name)
    prompts = choose_prompts(scene)
    for temperature in RECORDED[name]:
        record(name, scene, temperature, prompts).save(path_of(name, temperature))


if __name__ == "__main__":
    _main()
