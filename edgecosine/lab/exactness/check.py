"""Checks answers under randomised speculation against plain decoding through the same engine.

Everything that a server may do to a session happens at random: other sessions join and leave,
drafts are good, bad and adversarial, there are fewer slots than sessions and they are reassigned,
sessions are cancelled, engines are replaced. The check compares the tokens, and the bits of the
logits behind each committed token.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import torch

from edgecosine.engine.attention import BatchRows
from edgecosine.engine.base import TargetEngine, VerificationResult, VerifyWork, expect_verified
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.lab.exactness.drafts import MOODS, Mood
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.tree import EMPTY_TREE

MOST_SESSIONS = 16


@dataclass(frozen=True, slots=True)
class EngineShape:
    """Parameters of an engine: KV slots, tokens of a prefill chunk, threads. No answer may depend
    on them."""

    slots: int
    chunk: int
    threads: int


class Recorder:
    """A ForwardModel that records the logits of its last pass."""

    def __init__(self, model: ForwardModel) -> None:
        self._model = model
        self.logits = torch.empty(0)
        self.num_copied = 0
        """KV positions copied from slot to slot."""

    @property
    def slot_size(self) -> int:
        """KV positions of a slot."""
        return self._model.slot_size

    @property
    def held(self) -> tuple[int, int]:
        """Bytes of the weights and of the cache."""
        return self._model.held

    def forward(self, rows: BatchRows, keep: Sequence[int]) -> torch.Tensor:
        """As `ForwardModel.forward`."""
        self.logits = self._model.forward(rows, keep)
        return self.logits

    def move(self, slot: int, source: Sequence[int], target: Sequence[int]) -> None:
        """As `ForwardModel.move`."""
        self._model.move(slot, source, target)

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """As `ForwardModel.copy`."""
        self.num_copied += end - start
        self._model.copy(source, target, start, end)

    def clear(self, slot: int) -> None:
        """As `ForwardModel.clear`."""
        self._model.clear(slot)


@dataclass(frozen=True, slots=True)
class Opened:
    """A new engine, and the recorder between it and its model."""

    engine: TargetEngine
    recorder: Recorder


@dataclass(frozen=True, slots=True)
class ModelUnderTest:
    """A model under test; `open` returns a fresh engine."""

    name: str
    vocabulary: int
    open: Callable[[EngineShape], Opened]


@dataclass(frozen=True, slots=True)
class Question:
    """A request to the engine."""

    prompt: tuple[int, ...]
    sampling: Sampling
    is_followup: bool = False
    """Whether the prompt continues an earlier answer, whose prefix may still be cached."""


@dataclass(frozen=True, slots=True)
class Truth:
    """The answer of plain decoding, and a digest of the logits behind each token."""

    question: Question
    answer: tuple[int, ...]
    digests: tuple[bytes, ...]


@dataclass(slots=True)
class CheckCounts:
    """Counts of events and of divergences."""

    answers: int = 0
    answers_diverging: int = 0
    tokens_diverging: int = 0
    logits: int = 0
    logits_diverging: int = 0
    passes: int = 0
    shared_passes: int = 0
    """Passes of more than one session."""
    most_sessions: int = 0
    drafted_rounds: int = 0
    accepted: int = 0
    """Draft tokens that were committed in `drafted_rounds`."""
    restarts: int = 0
    cancellations: int = 0
    releases: int = 0
    crowded_passes: int = 0
    """Passes while more sessions were running than there were slots."""
    followups: int = 0
    copied: int = 0
    """KV positions that sessions copied from each other's slots."""

    @property
    def mean_accepted(self) -> float:
        """Accepted draft tokens per round that had a draft."""
        return self.accepted / max(1, self.drafted_rounds)

    def add(self, other: CheckCounts) -> None:
        """Add other counts to these."""
        for entry in fields(CheckCounts):
            mine, others = getattr(self, entry.name), getattr(other, entry.name)
            value = max(mine, others) if entry.name == "most_sessions" else mine + others
            setattr(self, entry.name, value)


def digests(
    opened: Opened, works: Sequence[VerifyWork], outcomes: Sequence[object]
) -> list[list[bytes]]:
    """For each work of the last pass, digests of the logits behind its committed tokens.

    The engine requests the logits of the root and then of all nodes, work by work.
    """
    found, row = list[list[bytes]](), 0
    for work, outcome in zip(works, outcomes, strict=True):
        if not isinstance(outcome, VerificationResult):
            found.append([])
            continue
        used = (row, *(row + 1 + node for node in outcome.path))
        found.append([_digest(opened.recorder.logits[index]) for index in used])
        row += 1 + len(work.tree)
    return found


def _digest(logits: torch.Tensor) -> bytes:
    return hashlib.blake2b(logits.numpy().tobytes(), digest_size=16).digest()


def plain_answer(opened: Opened, question: Question, num_tokens: int) -> Truth:
    """Decode one question alone, one token per pass."""
    tokens, seen = list(question.prompt), list[bytes]()
    while len(seen) < num_tokens:
        work = VerifyWork(
            "plain", tuple(tokens), len(question.prompt), EMPTY_TREE, question.sampling
        )
        result = opened.engine.step([work])
        [found] = digests(opened, [work], result.outcomes)
        [outcome] = result.outcomes
        if (verified := expect_verified(outcome)) is not None:
            tokens.append(verified.bonus)
            seen += found
    opened.engine.release("plain")
    return Truth(question, tuple(tokens[len(question.prompt) :]), tuple(seen))


@dataclass(slots=True, eq=False)
class _Session:
    key: str
    truth: Truth
    mood: Mood
    tokens: list[int]
    seen: list[bytes] = field(default_factory=list)

    @property
    def generated(self) -> list[int]:
        return self.tokens[len(self.truth.question.prompt) :]

    @property
    def is_done(self) -> bool:
        return len(self.generated) >= len(self.truth.answer)


class RandomSpeculation:
    """Answers questions whose plain answers are known, under random events."""

    def __init__(self, subject: ModelUnderTest, seed: int) -> None:
        self._subject = subject
        self._rng = random.Random(f"{seed}:{subject.name}")
        self._counts = CheckCounts()
        self._number = 0
        self._live: list[_Session] = []
        self._running_last: list[_Session] = []
        self._restart()

    def run(self, truths: Sequence[Truth]) -> CheckCounts:
        """Answer all questions at least once; returns the counts."""
        self._counts = CheckCounts()
        waiting = deque(truths)
        while waiting or self._live:
            self._disturb(waiting)
            self._join(waiting)
            self._step()
            for session in [s for s in self._live if s.is_done]:
                self._leave(session)
                self._compare(session, is_whole=True)
        return self._counts

    def _restart(self) -> None:
        rng = self._rng
        slots = rng.choice((1, 2, 4, 8, MOST_SESSIONS, MOST_SESSIONS))
        # With few slots sessions evict each other and prefill is most of the work, which would take
        # too long in tiny chunks.
        chunk = rng.choice((1, 5, 16, 64) if slots >= 8 else (16, 64))
        threads = rng.choice((1,) * 7 + (2,))
        self._shape = EngineShape(slots, chunk, threads)
        self._opened = self._subject.open(self._shape)
        self._room = self._new_room()

    def _new_room(self) -> int:
        return self._rng.choice((1, 2, 4, 8, MOST_SESSIONS, MOST_SESSIONS))

    def _disturb(self, waiting: deque[Truth]) -> None:
        rng = self._rng
        if rng.random() < 0.02:
            self._room = self._new_room()
        if rng.random() < 0.01:
            self._counts.restarts += 1
            self._restart()
        if self._live and rng.random() < 0.02:
            self._counts.releases += 1
            self._opened.engine.release(rng.choice(self._live).key)
        if self._live and rng.random() < 0.01:
            session = rng.choice(self._live)
            self._counts.cancellations += 1
            self._leave(session)
            self._compare(session, is_whole=False)
            waiting.append(session.truth)

    def _join(self, waiting: deque[Truth]) -> None:
        while waiting and len(self._live) < self._room:
            if self._live and self._rng.random() < 0.5:
                return
            truth = waiting.popleft()
            self._number += 1
            mood, prompt = self._rng.choice(MOODS), truth.question.prompt
            self._live.append(_Session(str(self._number), truth, mood, list(prompt)))

    def _leave(self, session: _Session) -> None:
        self._live.remove(session)
        self._opened.engine.release(session.key)

    def _running(self) -> list[_Session]:
        """The sessions of the next pass: mostly those of the last one, so that all of them end."""
        rng = self._rng
        running = [session for session in self._running_last if session in self._live]
        if not running or rng.random() < (0.05 if self._is_crowded else 0.4):
            most = min(len(self._live), self._shape.slots)
            size = most if rng.random() < 0.7 else rng.randint(1, most)
            running = rng.sample(self._live, size)
        self._running_last = running[: self._shape.slots]
        return self._running_last

    @property
    def _is_crowded(self) -> bool:
        return len(self._live) > self._shape.slots

    def _step(self) -> None:
        counts = self._counts
        sessions = self._running()
        works = [self._work(session) for session in sessions]
        recorder = self._opened.recorder
        before = recorder.num_copied
        outcomes = self._opened.engine.step(works).outcomes
        counts.passes += 1
        counts.copied += recorder.num_copied - before
        counts.shared_passes += len(sessions) > 1
        counts.crowded_passes += self._is_crowded
        counts.most_sessions = max(counts.most_sessions, len(sessions))
        found = digests(self._opened, works, outcomes)
        for session, work, outcome, seen in zip(sessions, works, outcomes, found, strict=True):
            verified = expect_verified(outcome)
            if verified is None:
                continue
            session.tokens += [*(work.tree.tokens[node] for node in verified.path), verified.bonus]
            session.seen += seen
            if len(work.tree):
                counts.drafted_rounds += 1
                counts.accepted += len(verified.path)

    def _work(self, session: _Session) -> VerifyWork:
        question, coming = session.truth.question, session.truth.answer[len(session.generated) :]
        tree = session.mood(self._rng, coming, self._subject.vocabulary)
        return VerifyWork(
            session.key, tuple(session.tokens), len(question.prompt), tree, question.sampling
        )

    def _compare(self, session: _Session, *, is_whole: bool) -> None:
        """Compare a session with the plain answer; logits up to the first different token."""
        truth, counts = session.truth, self._counts
        pairs = list(zip(session.generated, truth.answer, strict=False))
        wrong = [index for index, (generated, true) in enumerate(pairs) if generated != true]
        equal = wrong[0] + 1 if wrong else len(pairs)
        seen = list(zip(session.seen[:equal], truth.digests, strict=False))
        counts.logits += len(seen)
        counts.logits_diverging += sum(one != other for one, other in seen)
        counts.tokens_diverging += len(wrong)
        counts.answers_diverging += bool(wrong)
        if is_whole:
            counts.answers += 1
            counts.followups += truth.question.is_followup
