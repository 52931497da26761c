"""Engines without torch, a byte-level codec, and drafters under any weather, for whole sessions.

A language is a function from (tokens so far, sampling) to the next token, so what the target says
alone is known without running anything. The balancer is told scripted pass times, so that whether
speculation pays does not depend on the machine.
"""

from __future__ import annotations

import asyncio
import codecs
import enum
import itertools
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from edgecosine.engine.acceptance import walk
from edgecosine.engine.base import (
    DraftEngine,
    DraftWork,
    PassResult,
    Prefilling,
    Proposal,
    Verdict,
    VerifyWork,
)
from edgecosine.engine.text import TextCodec
from edgecosine.errors import EngineError, LinkLost
from edgecosine.node.balancer import Balancer
from edgecosine.node.drafting import Drafting
from edgecosine.node.engine_thread import EngineThread
from edgecosine.node.serving import Serving
from edgecosine.node.session import DrafterLink
from edgecosine.node.verifying import Verifying
from edgecosine.protocol.messages import (
    AnyMessage,
    Coupling,
    Draft,
    DraftRequest,
    OutOfStep,
    Release,
    pack_tokens,
)
from edgecosine.protocol.request import Answer, Delta, FinishReason, Progress, Request, Sampling

EOS = 256
NUM_TOKENS = 257
PASS_S = 1.0
"""What the balancer is told of each pass: so dear that any good draft pays."""

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
    """After this prompt comes this text, then more tokens, then the end for ever."""
    tokens, start = [*text, *more], len(prompt.encode())

    def next_token(so_far: Sequence[int], _: Sampling) -> int:
        position = len(so_far) - start
        return tokens[position] if 0 <= position < len(tokens) else EOS

    return next_token


class _ByteTokenizer:
    """One token per byte, and one for the end."""

    chat_template = None

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: list[int], **_: Any) -> str:
        return bytes(token for token in tokens if token < EOS).decode(errors="replace")

    def __len__(self) -> int:
        return NUM_TOKENS


def byte_codec() -> TextCodec:
    """The real codec over bytes."""
    return TextCodec(cast("PreTrainedTokenizerBase", _ByteTokenizer()), [EOS])


@dataclass(frozen=True, slots=True)
class Said:
    """What the target says alone."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason


def alone(language: Language, request: Request) -> Said:
    """The target's own answer, token by token, written without the code under test."""
    assert isinstance(request.prompt, str)
    sequence = list(request.prompt.encode())
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    tokens: list[int] = []
    text = ""
    reason: FinishReason = "length"
    while len(tokens) < request.max_tokens:
        token = language([*sequence, *tokens], request.sampling)
        if token == EOS and not request.ignore_eos:
            reason = "stop"
            break
        tokens.append(token)
        text += decoder.decode(bytes([token]) if token < EOS else b"")
        if any(stop in text for stop in request.stop):
            break
    text += "" if any(stop in text for stop in request.stop) else decoder.decode(b"", final=True)
    if cuts := [text.index(stop) for stop in request.stop if stop in text]:
        return Said(text[: min(cuts)], tuple(tokens), "stop")
    return Said(text, tuple(tokens), reason)


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

    def step(self, batch: Sequence[VerifyWork]) -> PassResult:
        keys = [work.key for work in batch]
        assert len(set(keys)) == len(keys) > 0
        self._before_pass(len(self.batches), keys)
        self.batches.append(keys)
        outcomes = [self._judge(work) for work in batch]
        return PassResult(outcomes, sum(1 + len(work.tree) for work in batch))

    def release(self, key: str) -> None:
        self.fed.pop(key, None)

    def _judge(self, work: VerifyWork) -> Verdict | Prefilling:
        assert all(token < NUM_TOKENS for token in (*work.tokens, *work.tree.tokens))
        assert len(work.tokens) + len(work.tree) <= self._max_context
        fed = min(self.fed.get(work.key, 0), len(work.tokens) - 1)
        self.fed[work.key] = min(len(work.tokens), fed + self._chunk)
        if remaining := len(work.tokens) - self.fed[work.key]:
            return Prefilling(remaining)

        def token_after(_node: int, accepted: list[int]) -> int:
            return self._language([*work.tokens, *accepted], work.sampling)

        return walk(work.tree, token_after)


class ScriptedDrafter:
    """Guesses a language, right in a share `hits` of positions; implements `DraftEngine`."""

    def __init__(
        self, language: Language, *, hits: float = 1.0, boast: float | None = None
    ) -> None:
        self._language, self._hits = language, hits
        self._confidence = hits if boast is None else boast
        self.held: set[str] = set()
        self.batches: list[list[DraftWork]] = []

    def draft(self, batch: Sequence[DraftWork]) -> list[Proposal]:
        self.batches.append(list(batch))
        self.held.update(work.key for work in batch)
        return [self._draft(work) for work in batch]

    def release(self, key: str) -> None:
        self.held.discard(key)

    def _draft(self, work: DraftWork) -> Proposal:
        sampling = _sampling(work.coupling)
        tokens = list(work.tokens)
        for _ in range(work.num_tokens):
            token = self._language(tokens, sampling)
            is_hit = zlib.crc32(pack_tokens(tokens), 99) % 1000 < 1000 * self._hits
            tokens.append(token if is_hit else (token + 1) % EOS)
        proposed = tuple(tokens[len(work.tokens) :])
        return Proposal(proposed, (self._confidence,) * len(proposed))


def _sampling(coupling: Coupling) -> Sampling:
    seed = int.from_bytes(coupling.seed, "little")
    return Sampling(temperature=coupling.temperature, seed=seed)


class Weather(enum.Enum):
    """What may befall one ask. Being late ends the wait at once, not after a second."""

    FINE = enum.auto()
    REQUEST_LATE = enum.auto()
    ANSWER_LATE = enum.auto()
    LINK_LOST = enum.auto()
    LINK_LOST_UNSEEN = enum.auto()
    FORGOTTEN = enum.auto()
    ALWAYS_OUT_OF_STEP = enum.auto()
    CLAIMS_TO_HAVE_MORE = enum.auto()
    WRONG_TOKENS = enum.auto()
    BEYOND_THE_VOCABULARY = enum.auto()
    TOO_FEW_CONFIDENCES = enum.auto()
    TOO_MANY_TOKENS = enum.auto()
    NOTHING = enum.auto()
    SLOW = enum.auto()


class FakeLink:
    """A drafter in memory behind the real `Drafting`; implements `DrafterLink`.

    A lost link stays away for `absence` looks at the links, and comes back to a drafter that has
    forgotten everything. `held` keeps asks waiting until it is set.
    """

    def __init__(
        self,
        drafting: Drafting,
        weather: Iterable[Weather] = (Weather.FINE,),
        *,
        absence: int = 2,
    ) -> None:
        self._drafting, self._weather = drafting, itertools.cycle(weather)
        self._absence, self._away = absence, 0
        self.asked: list[DraftRequest] = []
        self.released: list[str] = []
        self.is_asked = asyncio.Event()
        self.held: asyncio.Event | None = None

    def look(self) -> bool:
        """Whether the link is there now."""
        self._away = max(0, self._away - 1)
        return not self._away

    async def ask(self, request: DraftRequest) -> Draft | OutOfStep:
        if self._away:
            raise LinkLost("it is away")
        self.asked.append(request)
        self.is_asked.set()
        if self.held is not None:
            await self.held.wait()
        weather = next(self._weather)
        answer = await self._answer(weather, request)
        if isinstance(answer, OutOfStep):
            return answer
        return _spoilt(weather, answer)

    def send(self, message: AnyMessage) -> None:
        if self._away:
            raise LinkLost("it is away")
        assert isinstance(message, Release)
        self.released.append(message.request_id)
        self._drafting.on_request(message, lambda _: None)

    def lose(self) -> None:
        """The link is cut."""
        self._away = self._absence
        self._drafting.forget_all()

    async def _answer(self, weather: Weather, request: DraftRequest) -> Draft | OutOfStep:
        match weather:
            case Weather.REQUEST_LATE:
                raise TimeoutError
            case Weather.LINK_LOST:
                self.lose()
                raise LinkLost("cut")
            case Weather.LINK_LOST_UNSEEN:
                self._drafting.forget_all()
            case Weather.FORGOTTEN:
                self._drafting.on_request(Release(request.request_id), lambda _: None)
            case Weather.ALWAYS_OUT_OF_STEP:
                return OutOfStep(request.request_id, request.round, 0)
            case Weather.CLAIMS_TO_HAVE_MORE:
                return OutOfStep(request.request_id, request.round, 1 << 20)
            case Weather.SLOW:
                for _ in range(5):
                    await asyncio.sleep(0)
        answer: asyncio.Future[AnyMessage] = asyncio.get_running_loop().create_future()

        def reply(message: AnyMessage) -> None:
            if not answer.done():
                answer.set_result(message)

        self._drafting.on_request(request, reply)
        if weather is Weather.ANSWER_LATE:
            raise TimeoutError
        message = await answer
        assert isinstance(message, Draft | OutOfStep)
        return message


def _spoilt(weather: Weather, draft: Draft) -> Draft:
    num_tokens, tokens, confidences = len(draft.confidences), draft.tokens, draft.confidences
    match weather:
        case Weather.WRONG_TOKENS:
            tokens = pack_tokens([0] * num_tokens)
        case Weather.BEYOND_THE_VOCABULARY:
            tokens = pack_tokens([NUM_TOKENS + 5] * num_tokens)
        case Weather.TOO_FEW_CONFIDENCES:
            confidences = confidences[:-1]
        case Weather.TOO_MANY_TOKENS:
            tokens, confidences = tokens + pack_tokens([7] * 60), confidences + bytes([255] * 60)
        case Weather.NOTHING:
            tokens = confidences = b""
    return Draft(draft.request_id, draft.round, tokens, confidences, b"", draft.compute_us)


@dataclass
class House:
    """A target node without a network."""

    serving: Serving
    verifying: Verifying
    target: ScriptedTarget
    balancer: Balancer
    links: dict[str, FakeLink]
    drafters: list[Drafting]

    async def ask(self, request: Request) -> list[Progress]:
        """Everything that a request yields."""
        async with aclosing(self.serving.answer(request)) as steps:
            return [step async for step in steps]

    async def answer(self, request: Request) -> Answer:
        """The request's answer, which comes once, last, after deltas that make up its text."""
        steps = await self.ask(request)
        answers = [step for step in steps if isinstance(step, Answer)]
        assert answers == steps[-1:]
        deltas = [step for step in steps if isinstance(step, Delta)]
        assert [delta.index for delta in deltas] == list(range(len(deltas)))
        assert "".join(delta.text for delta in deltas) == answers[0].text
        return answers[0]


@dataclass
class Neighbour:
    """A drafter of a house."""

    engine: DraftEngine
    weather: Sequence[Weather] = field(default=(Weather.FINE,))


@asynccontextmanager
async def house(
    target: ScriptedTarget,
    neighbours: Sequence[Neighbour] = (),
    *,
    pass_s: float = PASS_S,
    max_sessions: int = 4,
    may_fail: bool = False,
) -> AsyncIterator[House]:
    """A running target with its drafters; everything has ended afterwards.

    Where the engine `may_fail`, the house stands without it, so that those inside can be heard.
    """
    balancer = Balancer()
    links: dict[str, FakeLink] = {}

    def look() -> Mapping[str, DrafterLink]:
        return {node_id: link for node_id, link in links.items() if link.look()}

    with ExitStack() as threads:
        thread = threads.enter_context(EngineThread("target"))
        verifying = Verifying(
            engine=target,
            thread=thread,
            max_batch=max_sessions,
            observe_pass=lambda rows, _: balancer.observe_pass(rows, pass_s),
        )
        drafters: list[Drafting] = []
        for number, neighbour in enumerate(neighbours):
            thread = threads.enter_context(EngineThread(f"drafter-{number}"))
            drafters.append(Drafting(engine=neighbour.engine, thread=thread, max_batch=4))
            links[f"drafter-{number}"] = FakeLink(drafters[-1], neighbour.weather)
        serving = Serving(
            model="scripted",
            codec=byte_codec(),
            max_context=target.max_context,
            max_sessions=max_sessions,
            exactness="bitwise",
            verifying=verifying,
            balancer=balancer,
            drafters=look,
        )
        async with asyncio.TaskGroup() as group:
            loops = [_verify(verifying, may_fail), *(drafting.run() for drafting in drafters)]
            tasks = [group.create_task(loop, name="house") for loop in loops]
            yield House(serving, verifying, target, balancer, links, drafters)
            for task in tasks:
                task.cancel()


async def _verify(verifying: Verifying, may_fail: bool) -> None:
    with suppress(*[EngineError] * may_fail):
        await verifying.run()
