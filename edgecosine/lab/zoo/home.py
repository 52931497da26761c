"""Seeded generator of dialogues about a house: devices, readings, schedules, energy, arithmetic."""

from __future__ import annotations

import random
from collections.abc import Iterator

from edgecosine.lab.zoo.home_state import House, random_house
from edgecosine.lab.zoo.home_turns import SKILLS

END = "<|endoftext|>"
SYSTEM = "System: {}\n"
USER = "User: {}\n"
ASSISTANT = "Assistant: {}"


def _dialogue(rng: random.Random) -> str:
    house: House = random_house(rng)
    text = SYSTEM.format(house.describe()) if rng.random() < 0.85 else ""
    skills = SKILLS if text else [skill for skill in SKILLS if not skill.needs_state]
    turns = rng.choice((1, 1, 2, 2, 3))
    answers: list[str] = []
    for _ in range(turns):
        question, answer = rng.choice(skills).make(rng, house)
        answers.append(USER.format(question) + ASSISTANT.format(answer))
    return text + END.join(answers)


def home_documents(count: int, seed: int) -> Iterator[str]:
    """Yield `count` dialogues, without the end-of-text of the last answer, which
    `encode_documents` adds."""
    for index in range(count):
        yield _dialogue(random.Random(f"{seed}:{index}"))
