"""Training text: conversations that the target writes alone, with the states that it goes through.

Every slot of a pass holds one conversation. The target first continues an opener to a whole user's
turn, at temperature 1 within its nucleus, and then answers it, greedily or sampled. The state before
the output layer is kept for each token of the answer, so that a student can learn the target's
whole distribution without running it again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgecosine.engine.model import PassModel
from edgecosine.engine.rows import RowBuilder
from edgecosine.lab.distill.prompts import DOMAINS, opener

Tokens = NDArray[np.uint16]
States = NDArray[np.float16]

ANSWER_TEMPERATURE = 0.8
_SAMPLED_SHARE = 0.4
_TURN_LENGTH = (4, 160)
_EXPECTED = 128
"""Tokens of an answer that counts before it has ended."""
_NUCLEUS, _NUCLEUS_TOKENS = 0.95, 64
_LOOP, _MAX_PERIOD = 24, 48
"""An answer ends where its last so many tokens repeat those of at most one period before."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One prompt with its answer; `states[i]` [width] is what the target drew token
    `num_prompt + i` from."""

    domain: str
    temperature: float
    tokens: Tokens
    num_prompt: int
    states: States


@dataclass(frozen=True, slots=True)
class Template:
    """What stands before and after a user's turn."""

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


@dataclass(slots=True)
class _Slot:
    """A conversation under way."""

    index: int
    tokens: list[int] = field(default_factory=list)
    fed: int = 0
    domain: str = ""
    temperature: float = 0.0
    num_prompt: int = 0
    """0 while the user's turn is written."""
    states: list[NDArray[np.float16]] = field(default_factory=list)


class Writer:
    """Writes conversations, as many at once as there are slots."""

    def __init__(
        self,
        model: PassModel,
        head: Callable[[torch.Tensor], torch.Tensor],
        tokenizer: Any,
        *,
        slots: int,
        max_answer: int,
        seed: int,
        domains: Sequence[str] = DOMAINS,
    ) -> None:
        """`model` gives the states before the output layer `head`, which gives float32 logits."""
        self._model, self._head, self._tokenizer = model, head, tokenizer
        self._template = Template.of(tokenizer)
        self._max_answer, self._domains = max_answer, domains
        self._random = random.Random(seed)
        self._noise = torch.Generator().manual_seed(seed)
        self._slots = [_Slot(index) for index in range(slots)]
        self._num_tokens = dict.fromkeys(domains, 0)
        """Of answers, so that each domain gets as many."""

    def write(self) -> Iterator[Conversation]:
        """Conversations as they end, without end."""
        for slot in self._slots:
            self._open(slot)
        while True:
            states = self._pass()
            for slot, token, state in zip(self._slots, self._draw(states), states, strict=True):
                if (done := self._extend(slot, token, state)) is not None:
                    yield done

    def _open(self, slot: _Slot) -> None:
        domain = min(self._domains, key=lambda name: self._num_tokens[name])
        self._num_tokens[domain] += _EXPECTED
        turn = self._tokenizer.encode(opener(domain, self._random), add_special_tokens=False)
        before = self._template.before
        slot.fed = len(before) if slot.tokens else 0  # those cells hold the same tokens again
        slot.tokens = [*before, *turn]
        is_sampled = self._random.random() < _SAMPLED_SHARE
        slot.domain, slot.temperature = domain, ANSWER_TEMPERATURE if is_sampled else 0.0
        slot.num_prompt, slot.states = 0, []

    @torch.inference_mode()
    def _pass(self) -> torch.Tensor:
        """States [slots, width] at the last token of every conversation."""
        rows, keep = RowBuilder(), []
        for slot in self._slots:
            rows.add_sequence(slot.index, slot.fed, slot.tokens[slot.fed :])
            slot.fed = len(slot.tokens)
            keep.append(len(rows) - 1)
        return self._model.forward(rows.build(), keep)

    @torch.inference_mode()
    def _draw(self, states: torch.Tensor) -> list[int]:
        logits = self._head(states)
        tokens = logits.argmax(-1)
        warm = [s.index for s in self._slots if not s.num_prompt or s.temperature]
        if warm:
            best = torch.topk(logits[warm], _NUCLEUS_TOKENS)
            heat = [self._slots[i].temperature if self._slots[i].num_prompt else 1.0 for i in warm]
            shares = (best.values.cpu() / torch.tensor(heat)[:, None]).softmax(-1)
            above = shares.cumsum(-1) - shares
            is_turn = torch.tensor([not self._slots[i].num_prompt for i in warm])[:, None]
            shares = shares.masked_fill(is_turn & (above > _NUCLEUS), 0.0)
            drawn = torch.multinomial(shares, 1, generator=self._noise)
            tokens[warm] = best.indices.gather(1, drawn.to(best.indices.device))[:, 0]
        drawn_tokens: list[int] = tokens.tolist()
        return drawn_tokens

    def _extend(self, slot: _Slot, token: int, state: torch.Tensor) -> Conversation | None:
        slot.tokens.append(token)
        if slot.num_prompt:
            slot.states.append(state.to(torch.float16).cpu().numpy())
            return self._finished(slot)
        length = len(slot.tokens) - len(self._template.before) - 1
        if token == self._template.end:
            slot.tokens.pop()
            slot.tokens += self._template.after
            slot.num_prompt = len(slot.tokens)
        if (token == self._template.end and length < _TURN_LENGTH[0]) or length > _TURN_LENGTH[1]:
            self._num_tokens[slot.domain] -= _EXPECTED
            self._open(slot)
        return None

    def _finished(self, slot: _Slot) -> Conversation | None:
        is_loop = len(slot.states) % 8 == 0 and _loops(slot.tokens[slot.num_prompt :])
        is_over = slot.tokens[-1] == self._template.end or len(slot.states) >= self._max_answer
        if not (is_over or is_loop):
            return None
        done = Conversation(
            slot.domain,
            slot.temperature,
            np.array(slot.tokens, dtype=np.uint16),
            slot.num_prompt,
            np.stack(slot.states),
        )
        self._num_tokens[slot.domain] += len(slot.states) - _EXPECTED
        self._open(slot)
        return done


def _loops(tokens: list[int]) -> bool:
    tail = tokens[-_LOOP:]
    most = min(_MAX_PERIOD, len(tokens) - _LOOP)
    return any(tokens[-_LOOP - period : -period] == tail for period in range(1, most + 1))
