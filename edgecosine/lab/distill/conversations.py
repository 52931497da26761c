"""Training text: conversations that the target writes alone, with its hidden states.

Every slot of a forward pass holds one conversation. The target first continues an opener to a whole
user's turn, at temperature 1 within its nucleus, and then answers it, greedily or sampled. The
state before the output layer is kept for each token of the answer, so that a student can learn the
target's whole distribution without running the target again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from edgecosine.engine.sampling import draw
from edgecosine.lab.distill.prompts import DOMAINS, opener
from edgecosine.protocol.api.request import Sampling

Tokens = NDArray[np.uint16]
States = NDArray[np.float16]

ANSWER_TEMPERATURE = 0.8
SAMPLED_SHARE = 0.4
_TURN_LENGTH = (4, 160)
_EXPECTED = 128
"""Assumed tokens of an answer until it has ended."""
_NUCLEUS, _NUCLEUS_TOKENS = 0.95, 64
_LOOP, _MAX_PERIOD = 24, 48
"""An answer ends when its last `_LOOP` tokens repeat those of at most `_MAX_PERIOD` before."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One prompt with its answer. `states[i]` [width] is the target's state that gave the token
    `num_prompt + i`."""

    domain: str
    temperature: float
    tokens: Tokens
    num_prompt: int
    states: States


@dataclass(frozen=True, slots=True)
class Template:
    """The tokens before and after a user's turn."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    end: int
    """The token that ends a turn."""

    @classmethod
    def of(cls, tokenizer: Any) -> Template:
        """The chat template of a tokenizer."""
        mark = "\x00"
        turn = [{"role": "user", "content": mark}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        before, after = (
            tuple(tokenizer.encode(part, add_special_tokens=False)) for part in text.split(mark)
        )
        return cls(before, after, tokenizer.eos_token_id)


@dataclass(frozen=True, slots=True)
class ConversationTurn:
    """A user's turn, or its beginning if it is not `is_whole`."""

    domain: str
    tokens: tuple[int, ...]
    temperature: float
    is_whole: bool = False
    seed: int | None = None
    """Seed of the noise that target and drafters share; None: unshared noise."""


class Openers:
    """An endless sequence of openers, balanced so that all domains get equally many tokens."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self._tokenizer, self._random = tokenizer, random.Random(seed)
        self._num_tokens = dict.fromkeys(DOMAINS, 0)

    def __iter__(self) -> Iterator[ConversationTurn]:
        while True:
            domain = min(self._num_tokens, key=lambda name: self._num_tokens[name])
            self._num_tokens[domain] += _EXPECTED
            yield self.opening(domain)

    def opening(self, domain: str) -> ConversationTurn:
        """The opener of one turn."""
        text = opener(domain, self._random)
        tokens = self._tokenizer.encode(text, add_special_tokens=False)
        is_sampled = self._random.random() < SAMPLED_SHARE
        return ConversationTurn(domain, tuple(tokens), ANSWER_TEMPERATURE if is_sampled else 0.0)

    def count(self, done: Conversation) -> None:
        """Correct the token count of the conversation's domain by its true length."""
        self._num_tokens[done.domain] += len(done.states) - _EXPECTED


@dataclass(slots=True)
class ConversationSlot:
    """A running conversation, of which the model has read `fed` tokens."""

    index: int
    turn: ConversationTurn
    tokens: list[int]
    fed: int = 0
    num_prompt: int = 0
    """0 while the user's turn is being written."""
    states: list[NDArray[np.float16]] = field(default_factory=list)

    @property
    def temperature(self) -> float:
        """Temperature of the next token."""
        return self.turn.temperature if self.num_prompt else 1.0

    @property
    def is_read(self) -> bool:
        """Whether the model has read all tokens, so that the next one can be drawn."""
        return self.fed == len(self.tokens)


class Feeder(Protocol):
    """Runs a model over the pending tokens of its slots."""

    def feed(self, slots: Sequence[ConversationSlot]) -> torch.Tensor:
        """Read at least one token of each slot.

        Returns states before the output layer [slots, width], at the last token of each slot whose
        tokens are all read now, in the order of the slots.
        """


class Writer:
    """Writes conversations, one in each slot at a time."""

    def __init__(
        self,
        feeder: Feeder,
        head: Callable[[torch.Tensor], torch.Tensor],
        template: Template,
        *,
        slots: int,
        max_answer: int,
        seed: int = 0,
    ) -> None:
        """`head` computes float32 logits from the feeder's states."""
        self._feeder, self._head, self._template = feeder, head, template
        self._num_slots, self._max_answer = slots, max_answer
        self._noise = torch.Generator().manual_seed(seed)

    def write(self, turns: Iterable[ConversationTurn]) -> Iterator[Conversation]:
        """Yields the conversations of all turns, in the order in which they end."""
        coming = iter(turns)
        free, slots = list(range(self._num_slots)), list[ConversationSlot]()
        is_filled = set[int]()
        while True:
            while free and (turn := next(coming, None)) is not None:
                index = free.pop()
                slots.append(self._open(index, turn, is_filled=index in is_filled))
                is_filled.add(index)
            if not slots:
                return
            states = self._feeder.feed(slots)
            read = [slot for slot in slots if slot.is_read]
            kept = states.to(torch.float16).cpu().numpy()
            for slot, token, state in zip(read, self._draw(read, states), kept, strict=True):
                self._extend(slot, token, state)
                is_dropped = self._is_no_turn(slot)
                if is_dropped or self._is_finished(slot):
                    slots.remove(slot)
                    free.append(slot.index)
                    if not is_dropped:
                        yield _conversation(slot)

    def _open(self, index: int, turn: ConversationTurn, *, is_filled: bool) -> ConversationSlot:
        template = self._template
        slot = ConversationSlot(index, turn, [*template.before, *turn.tokens])
        if turn.is_whole:
            slot.tokens += template.after
            slot.num_prompt = len(slot.tokens)
        if is_filled:  # all conversations begin with the same tokens, which are in the KV cache
            slot.fed = len(template.before)
        return slot

    @torch.inference_mode()
    def _draw(self, slots: Sequence[ConversationSlot], states: torch.Tensor) -> list[int]:
        logits = self._head(states)
        tokens = logits.argmax(-1)
        warm = [i for i, slot in enumerate(slots) if slot.temperature and slot.turn.seed is None]
        if warm:
            tokens[warm] = self._sampled(logits[warm], [slots[i] for i in warm])
        drawn: list[int] = tokens.tolist()
        for i, slot in enumerate(slots):
            if slot.temperature and slot.turn.seed is not None:
                how = Sampling(temperature=slot.temperature, seed=slot.turn.seed)
                drawn[i] = draw(logits[i], len(slot.tokens), how, (), ())
        return drawn

    def _sampled(self, logits: torch.Tensor, slots: Sequence[ConversationSlot]) -> torch.Tensor:
        """Tokens drawn from the most probable ones; in a user's turn from the nucleus."""
        best = torch.topk(logits, _NUCLEUS_TOKENS)
        temperatures = torch.tensor([slot.temperature for slot in slots])[:, None]
        shares = (best.values.cpu() / temperatures).softmax(-1)
        is_turn = torch.tensor([not slot.num_prompt for slot in slots])[:, None]
        shares = shares.masked_fill(is_turn & (shares.cumsum(-1) - shares > _NUCLEUS), 0.0)
        drawn = torch.multinomial(shares, 1, generator=self._noise)
        return best.indices.gather(1, drawn.to(best.indices.device))[:, 0]

    def _extend(self, slot: ConversationSlot, token: int, state: NDArray[np.float16]) -> None:
        if slot.num_prompt:
            slot.tokens.append(token)
            slot.states.append(state)
        elif token == self._template.end and self._num_written(slot) >= _TURN_LENGTH[0]:
            slot.tokens += self._template.after
            slot.num_prompt = len(slot.tokens)
        else:
            slot.tokens.append(token)

    def _num_written(self, slot: ConversationSlot) -> int:
        return len(slot.tokens) - len(self._template.before)

    def _is_no_turn(self, slot: ConversationSlot) -> bool:
        """Whether the user's turn is too short or too long."""
        is_ended = slot.tokens[-1] == self._template.end
        return not slot.num_prompt and (is_ended or self._num_written(slot) > _TURN_LENGTH[1])

    def _is_finished(self, slot: ConversationSlot) -> bool:
        length = len(slot.states)
        if not length:
            return False
        is_over = slot.tokens[-1] == self._template.end or length >= self._max_answer
        return is_over or (length % 8 == 0 and _loops(slot.tokens[slot.num_prompt :]))


def _conversation(slot: ConversationSlot) -> Conversation:
    return Conversation(
        slot.turn.domain,
        slot.turn.temperature,
        np.array(slot.tokens, dtype=np.uint16),
        slot.num_prompt,
        np.stack(slot.states),
    )


def _loops(tokens: list[int]) -> bool:
    tail = tokens[-_LOOP:]
    most = min(_MAX_PERIOD, len(tokens) - _LOOP)
    return any(tokens[-_LOOP - period : -period] == tail for period in range(1, most + 1))
