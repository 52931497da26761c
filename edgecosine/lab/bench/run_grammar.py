"""Measures the cost of a response format, and checks that drafts do not change answers with one.

The real model verifies drafts of its own answers, with a JSON schema and without. Both sides have
equal numbers of rows and of accepted tokens in each forward pass, so the ratio of their speeds is
the cost of the grammar. They alternate in one process, whose processor time is measured, since
other programs on the machine hardly change it.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgecosine.engine.answer_grammar import AnswerForm
from edgecosine.engine.base import Constraint, TargetEngine, VerifyWork, expect_verified
from edgecosine.engine.grammar import Grammar, Grammars
from edgecosine.engine.loading.load import load_target
from edgecosine.engine.options import LoadOptions
from edgecosine.engine.tokenizer import TextCodec
from edgecosine.lab.exactness.drafts import bad, good
from edgecosine.lab.figures import Figure, Keep, Notify, counted, interval
from edgecosine.protocol.api.request import ChatMessage, Sampling
from edgecosine.protocol.api.response_format import ResponseFormat
from edgecosine.protocol.wire.tree import EMPTY_TREE, TokenTree, chain

GAMMA: Final = 4
MOST_TOKENS: Final = 96
_SEEDS: Final = 4
_PROMPT: Final = "Describe a person who lives by the sea."
_TEXT: Final = {"type": "string", "maxLength": 40}
_PERSON: Final = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "address": {
            "type": "object",
            "properties": {"street": _TEXT, "town": _TEXT},
            "required": ["street", "town"],
            "additionalProperties": False,
        },
        "hobbies": {"type": "array", "items": _TEXT, "minItems": 2, "maxItems": 4},
    },
    "required": ["name", "age", "address", "hobbies"],
    "additionalProperties": False,
}
_FORMS: Final = (
    ResponseFormat("json_schema", json.dumps(_PERSON)),
    ResponseFormat("regex", "[A-Z][a-z]{3,12} is [0-9]{2}, likes ([a-z]{3,9}, ){3}and more[.]"),
    ResponseFormat("choice", json.dumps(["a fisherman", "a captain of the navy", "a painter"])),
    ResponseFormat("grammar", 'start: line{3,5}\nline: "- " WORDS "\\n"\nWORDS: /[a-z ]{8,40}/'),
)

Drafts = Callable[[int], TokenTree]
"""Returns the draft tree after this number of the answer's tokens."""


@dataclass(frozen=True)
class _Bench:
    engine: TargetEngine
    codec: TextCodec
    prompt: tuple[int, ...]

    def answer(
        self, sampling: Sampling, constraint: Constraint | None, drafts: Drafts
    ) -> tuple[list[int], float]:
        """An answer of at most `MOST_TOKENS`, including its end token, and the processor seconds
        from its first token to its last."""
        tokens, started = list(self.prompt), 0.0
        start, ends = len(tokens), self.codec.eos_tokens
        while len(tokens) - start < MOST_TOKENS and not ends.intersection(tokens[start:]):
            generated = tokens[start:]
            tree = drafts(len(generated)) if generated else EMPTY_TREE
            if constraint is not None:
                tree = constraint.cut(generated, tree)
            work = VerifyWork("bench", tuple(tokens), start, tree, sampling, constraint=constraint)
            [outcome] = self.engine.step([work]).outcomes
            result = expect_verified(outcome)
            if result is None:
                continue
            started = started or time.process_time()
            tokens += [*(tree.tokens[node] for node in result.path), result.bonus]
        elapsed_s = time.process_time() - started
        self.engine.release("bench")
        answer = tokens[start:][:MOST_TOKENS]
        end = next((at for at, token in enumerate(answer) if token in ends), len(answer))
        return answer[: end + 1], elapsed_s


def run_grammar_bench(model: str, repeats: int, notify: Notify, keep: Keep) -> dict[str, Figure]:
    """Measure a model; returns its figures. Figures and runs are saved after each part."""
    engine, loaded = load_target(LoadOptions(model, threads=1, slots=2))
    assert loaded.codec is not None
    codec = loaded.codec
    text = codec.render_chat([ChatMessage("user", _PROMPT)]) if codec.chat_template else _PROMPT
    bench = _Bench(engine, codec, tuple(codec.encode_rendered(text)))
    grammars = Grammars(codec.tokenizer, codec.eos_tokens, codec.num_tokens)
    started = time.process_time()
    compiled = [grammars.compile(AnswerForm(form)) for form in _FORMS]
    figures = {"grammar_compile_ms": counted(
        1000 * (time.process_time() - started) / len(_FORMS), "ms"
    )}  # fmt: skip
    runs: list[dict[str, Any]] = []
    for name, drafts in (("", GAMMA), ("_without_drafts", 0)):
        ratios = []
        for repeat in range(repeats):
            speeds = _speeds(bench, compiled[0], drafts)
            ratios.append(speeds[0] / speeds[1])
            runs.append({"gamma": drafts, "repeat": repeat, "tokens_per_s": speeds})
        figures[f"grammar_overhead{name}"] = interval(ratios)
        notify(f"grammar_overhead{name}: {figures[f'grammar_overhead{name}'].value:.3f}")
        keep(figures, runs)
    identical = [
        _is_identical(bench, form, Sampling(temperature, seed=seed))
        for form, seed, temperature in itertools.product(compiled, range(_SEEDS), (0.0, 1.0))
    ]
    share = sum(identical) / len(identical)
    figures["grammar_identical_share"] = Figure(share, None, None, "", len(identical))
    keep(figures, runs)
    return figures


def _speeds(bench: _Bench, grammar: Grammar, gamma: int) -> tuple[float, float]:
    """Tokens per second with the grammar and without it, each with drafts of its own answer."""
    found = []
    for constraint in (grammar.matcher, lambda: None):
        truth, _ = bench.answer(Sampling(), constraint(), lambda _: EMPTY_TREE)
        drafts = _right(truth, gamma)
        answer, elapsed_s = bench.answer(Sampling(), constraint(), drafts)
        assert answer == truth, "drafts changed an answer"
        found.append((len(truth) - 1) / elapsed_s)
    return found[0], found[1]


def _right(truth: Sequence[int], gamma: int) -> Drafts:
    return lambda generated: chain(tuple(truth[generated : generated + gamma]))


def _is_identical(bench: _Bench, grammar: Grammar, sampling: Sampling) -> bool:
    """Whether the answer is the same without drafts and with random drafts of two qualities."""
    truth, _ = bench.answer(sampling, grammar.matcher(), lambda _: EMPTY_TREE)
    chance, size = random.Random(sampling.seed), bench.codec.num_tokens

    def drafts(generated: int) -> TokenTree:
        return chance.choice((good, bad))(chance, truth[generated:], size)

    return bench.answer(sampling, grammar.matcher(), drafts)[0] == truth
