"""Engines without torch and a byte-level codec.

A language is a function from (tokens so far, sampling) to the next token, so the target's own text
is known without running anything.
"""

from __future__ import annotations

import codecs
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from msgspec.structs import replace
from transformers import PreTrainedTokenizerBase

from edgecosine.engine.base import (
    DraftResult,
    DraftWork,
    KvUse,
    Prefilling,
    StepResult,
    VerificationResult,
    VerifyWork,
    never,
)
from edgecosine.engine.target.acceptance import walk
from edgecosine.engine.tokenizer import TextCodec
from edgecosine.protocol.api.request import FinishReason, Logprobs, Request, Sampling
from edgecosine.protocol.wire.messages import (
    SharedNoise,
    pack_tokens,
)

EOS = 256
NUM_TOKENS = 257

Language = Callable[[Sequence[int], Sampling], int]


def babble(alphabet: str = "abcd", *, salt: int = 0, eos_every: int = 0) -> Language:
    """The next token is a hash of all before, and of the seed unless greedy, over the bytes of an
    alphabet; about every `eos_every`th is the end."""
    letters = alphabet.encode()

    def next_token(tokens: Sequence[int], sampling: Sampling) -> int:
        seed = 0 if sampling.is_greedy else sampling.seed + 1
        noise = zlib.crc32(seed.to_bytes(9, "little") + pack_tokens(tuple(tokens)), salt)
        if eos_every and noise % eos_every == 0:
            return EOS
        return letters[noise // 7 % len(letters)]

    return next_token


def recital(prompt: str, text: bytes, *more: int) -> Language:
    """This text after this prompt, then more tokens, then end tokens."""
    tokens, start = [*text, *more], len(prompt.encode())

    def next_token(so_far: Sequence[int], _: Sampling) -> int:
        position = len(so_far) - start
        return tokens[position] if 0 <= position < len(tokens) else EOS

    return next_token


def draw(language: Language, tokens: Sequence[int], num_prompt: int, how: Sampling) -> int:
    """The language's next token; in its place the first of an alphabet while it may not end."""
    token = language(tokens, how)
    ends = {EOS, *how.stop_token_ids}
    if token in ends and len(tokens) - num_prompt < how.min_tokens:
        return next(each for each in range(ord("a"), EOS) if each not in ends)
    return token


def tell(tokens: Sequence[int], drawn: int, num_top: int) -> Logprobs:
    """Made-up log-probabilities after `tokens`, which depend on all of them."""

    def logprob(token: int) -> float:
        return -(zlib.crc32(pack_tokens((*tokens, token))) % 1000) / 64

    letters = sorted(range(ord("a"), ord("z")), key=logprob, reverse=True)
    return Logprobs(logprob(drawn), tuple((each, logprob(each)) for each in letters[:num_top]))


class _ByteTokenizer:
    """One token per byte, and one for the end."""

    chat_template = None

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(text.encode())

    def convert_ids_to_tokens(self, token: int) -> str:
        return f"<0x{token:02X}>"

    def decode(self, tokens: list[int], **_: Any) -> str:
        return bytes(token for token in tokens if token < EOS).decode(errors="replace")

    def __len__(self) -> int:
        return NUM_TOKENS


def byte_codec() -> TextCodec:
    """The real codec over bytes."""
    return TextCodec(cast("PreTrainedTokenizerBase", _ByteTokenizer()), [EOS])


@dataclass(frozen=True, slots=True)
class ExpectedAnswer:
    """The target's answer without drafters."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[Logprobs, ...] = ()


def alone(language: Language, request: Request) -> ExpectedAnswer:
    """The target's own answer, token by token, written without the code under test."""
    assert isinstance(request.prompt, str)
    prompt, how = list(request.prompt.encode()), request.sampling
    ends = {*how.stop_token_ids} if request.ignore_eos else {EOS, *how.stop_token_ids}
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    tokens: list[int] = []
    logprobs: list[Logprobs] = []
    text, exempt = "", 0
    reason: FinishReason = "length"

    def cuts() -> list[int]:
        return [
            at
            for stop in request.stop
            for at in range(len(text))
            if text.startswith(stop, at) and at + len(stop) > exempt
        ]

    while len(tokens) < request.max_tokens and not cuts():
        token = draw(language, [*prompt, *tokens], len(prompt), how)
        if token in ends and len(tokens) >= how.min_tokens:
            reason = "stop"
            break
        logprobs.append(tell([*prompt, *tokens], token, request.top_logprobs or 0))
        tokens.append(token)
        text += decoder.decode(bytes([token]) if token < EOS else b"")
        if len(tokens) <= how.min_tokens:
            exempt = len(text)
    text += "" if cuts() else decoder.decode(b"", final=True)
    if found := cuts():
        return ExpectedAnswer(text[: min(found)], tuple(tokens), "stop", tuple(logprobs))
    return ExpectedAnswer(text, tuple(tokens), reason, tuple(logprobs))


class ScriptedTarget:
    """Decides by a language; implements `TargetEngine`.

    A pass feeds at most `chunk` new tokens of a sequence. `before_pass` is called in the engine's
    thread with the number of the pass and its keys; it may block or raise.
    """

    def __init__(
        self,
        language: Language,
        *,
        chunk: int = 8,
        max_context: int = 4096,
        before_pass: Callable[[int, list[str]], None] = lambda _number, _keys: None,
    ) -> None:
        self._language, self._chunk, self._max_context = language, chunk, max_context
        self._before_pass = before_pass
        self.batches: list[list[str]] = []
        self.fed: dict[str, int] = {}
        """Tokens in the slot of each key."""

    @property
    def max_context(self) -> int:
        return self._max_context

    @property
    def kv_use(self) -> KvUse:
        return KvUse(sum(self.fed.values()), 4 * self._max_context)

    def step(self, batch: Sequence[VerifyWork]) -> StepResult:
        keys = [work.key for work in batch]
        assert len(set(keys)) == len(keys) > 0
        self._before_pass(len(self.batches), keys)
        self.batches.append(keys)
        former = {work.key: min(self.fed.get(work.key, 0), len(work.tokens) - 1) for work in batch}
        outcomes = [self._judge(work) for work in batch]
        num_fed = sum(self.fed[work.key] - former[work.key] for work in batch)
        return StepResult(outcomes, num_fed + sum(len(work.tree) for work in batch))

    def release(self, key: str) -> None:
        self.fed.pop(key, None)

    def _judge(self, work: VerifyWork) -> VerificationResult | Prefilling:
        assert all(token < NUM_TOKENS for token in (*work.tokens, *work.tree.tokens))
        assert len(work.tokens) + len(work.tree) <= self._max_context
        fed = min(self.fed.get(work.key, 0), len(work.tokens) - 1)
        self.fed[work.key] = min(len(work.tokens), fed + self._chunk)
        if remaining := len(work.tokens) - self.fed[work.key]:
            return Prefilling(remaining)

        def token_after(_node: int, accepted: list[int]) -> int:
            so_far = [*work.tokens, *accepted]
            return draw(self._language, so_far, work.num_prompt, work.sampling)

        result = walk(work.tree, token_after)
        if work.top_logprobs is None:
            return result
        if work.scores_prompt:
            scored = tuple(
                tell(work.tokens[:number], work.tokens[number], work.top_logprobs)
                for number in range(1, work.num_prompt)
            )
            result = replace(result, prompt_logprobs=scored)
        committed = [*(work.tree.tokens[node] for node in result.path), result.bonus]
        logprobs = tuple(
            tell([*work.tokens, *committed[:number]], token, work.top_logprobs)
            for number, token in enumerate(committed)
        )
        return replace(result, logprobs=logprobs)


class ScriptedDrafter:
    """Drafts a language, right in a share `hits` of positions; implements `DraftEngine`."""

    def __init__(
        self, language: Language, *, hits: float = 1.0, confidence: float | None = None
    ) -> None:
        self._language, self._hits = language, hits
        self._confidence = hits if confidence is None else confidence
        self.held: set[str] = set()
        self._released = threading.Condition()
        self.batches: list[list[DraftWork]] = []

    def draft(
        self, batch: Sequence[DraftWork], is_interrupted: Callable[[int], bool] = never
    ) -> list[DraftResult]:
        self.batches.append(list(batch))
        self.held.update(work.key for work in batch)
        return [self._draft(work) for work in batch]

    def release(self, key: str) -> None:
        with self._released:
            self.held.discard(key)
            self._released.notify_all()

    def wait_until_held_by(self, keys: set[str]) -> None:
        """Wait until no other requests have slots."""
        with self._released:
            assert self._released.wait_for(lambda: self.held <= keys, timeout=20)

    def _draft(self, work: DraftWork) -> DraftResult:
        sampling = _sampling(work.noise)
        tokens = list(work.tokens)
        depth = max(work.ahead.depths, default=0) if work.ahead else 0
        for _ in range(depth + work.num_tokens):
            token = self._language(tokens, sampling)
            is_hit = zlib.crc32(pack_tokens(tokens), 99) % 1000 < 1000 * self._hits
            tokens.append(token if is_hit else (token + 1) % EOS)
        proposed = tuple(tokens[len(work.tokens) :])
        return DraftResult(proposed, (self._confidence,) * len(proposed))


class AlternatingDrafter(ScriptedDrafter):
    """Right at positions whose parity is `parity`, with a low confidence at the others."""

    def __init__(self, language: Language, parity: int) -> None:
        super().__init__(language)
        self._parity = parity

    def _draft(self, work: DraftWork) -> DraftResult:
        right = super()._draft(work)
        positions = range(len(work.tokens), len(work.tokens) + len(right.tokens))
        hits = [position % 2 == self._parity for position in positions]
        return DraftResult(
            tuple(t if hit else (t + 1) % EOS for t, hit in zip(right.tokens, hits, strict=True)),
            tuple(0.9 if hit else 0.2 for hit in hits),
        )


def _sampling(coupling: SharedNoise) -> Sampling:
    seed = int.from_bytes(coupling.seed, "little")
    return Sampling(temperature=coupling.temperature, seed=seed)
