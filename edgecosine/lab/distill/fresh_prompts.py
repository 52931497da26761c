"""Any number of prompts that no drafter was trained on; the target writes the user's turns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

from edgecosine.lab.distill.conversations import (
    Conversation,
    ConversationTurn,
    Openers,
    Template,
    Writer,
)
from edgecosine.lab.distill.prompts import DOMAINS
from edgecosine.lab.distill.teacher import load_teacher

_SLOTS, _SLOT_SIZE = 32, 256
FIRST_SEED = 1_000_000
"""Training text is written with smaller seeds."""


def fresh_prompts(target: str, count: int, seed: int = FIRST_SEED) -> list[tuple[str, str]]:
    """`count` different prompts with alternating domains, as (domain, text), written at
    temperature 1.

    Raises as `load_teacher`.
    """
    teacher = load_teacher(target, "cpu", slots=_SLOTS, slot_size=_SLOT_SIZE)
    template = Template.of(teacher.tokenizer)
    writer = Writer(teacher.feeder, teacher.head, template, slots=_SLOTS, max_answer=1, seed=seed)
    turns = _in_turn(Openers(teacher.tokenizer, seed))
    found: dict[str, dict[str, None]] = {domain: {} for domain in DOMAINS}
    wanted = -(-count // len(DOMAINS))
    for done in writer.write(turns):
        found[done.domain][_text(done, template, teacher.tokenizer)] = None
        if all(len(texts) >= wanted for texts in found.values()):
            break
    columns = [[(domain, text) for text in islice(found[domain], wanted)] for domain in DOMAINS]
    return [one for row in zip(*columns, strict=True) for one in row][:count]


def _in_turn(openers: Openers) -> Iterator[ConversationTurn]:
    domains = cycle(DOMAINS)
    while True:
        yield openers.opening(next(domains))


def _text(done: Conversation, template: Template, tokenizer: Any) -> str:
    turn = done.tokens[len(template.before) : done.num_prompt - len(template.after)]
    return str(tokenizer.decode(turn.tolist()))
