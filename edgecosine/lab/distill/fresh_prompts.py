"""Makes any number of prompts that no drafter was trained on: the target writes users' turns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
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
_NOTIFY_EVERY = 200
FIRST_SEED = 1_000_000
"""Training text is written with smaller seeds."""


async def write_prompts(
    target: str, count: int, notify: Callable[[str], None]
) -> list[tuple[str, str]]:
    """The prompts of `fresh_prompts`, computed in a thread that ends soon after a cancellation.

    Raises the errors of `load_teacher`.
    """
    is_cancelled = threading.Event()

    def is_wanted(written: int) -> bool:
        if written % _NOTIFY_EVERY == 0:
            notify(f"the target writes {count} prompts: {written} turns done")
        return not is_cancelled.is_set()

    try:
        return await asyncio.to_thread(fresh_prompts, target, count, is_wanted=is_wanted)
    finally:
        is_cancelled.set()


def fresh_prompts(
    target: str,
    count: int,
    seed: int = FIRST_SEED,
    *,
    is_wanted: Callable[[int], bool] = lambda _: True,
) -> list[tuple[str, str]]:
    """`count` different prompts as (domain, text), written at temperature 1; domains alternate.

    `is_wanted` is called after each turn with the number of turns before it; when it returns False,
    no prompts are returned.

    Raises the errors of `load_teacher`.
    """
    teacher = load_teacher(target, "cpu", slots=_SLOTS, slot_size=_SLOT_SIZE)
    template = Template.of(teacher.tokenizer)
    writer = Writer(teacher.feeder, teacher.head, template, slots=_SLOTS, max_answer=1, seed=seed)
    turns = _in_turn(Openers(teacher.tokenizer, seed))
    found: dict[str, dict[str, None]] = {domain: {} for domain in DOMAINS}
    wanted = -(-count // len(DOMAINS))
    for written, done in enumerate(writer.write(turns)):
        if not is_wanted(written):
            return []
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
