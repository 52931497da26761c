"""Held-out prompts of exactly 48 tokens that start where a text naturally starts."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

PROMPT_TOKENS = 48
_ADDRESS = re.compile(r"[\w.]+@\w")
_SENTENCE = re.compile(r"^(?=(?:System|User): )|(?<=[.?] )(?=[A-Z])", re.MULTILINE)
_LINE = re.compile(r"^(?=[^\n]*\w)", re.MULTILINE)
_STARTS = {
    "python": re.compile(
        r"^(?=(?:class|def|async def|@\w+|    def|import|from|if|try)\b)", re.MULTILINE
    ),
    "manual": re.compile(r"(?:\A|(?<=\n\n))(?=[A-Z])"),
    "legal": re.compile(r"(?:\A|(?<=\n\n)|(?<=\n \.\n))(?=\s*[A-Z])"),
    "home": re.compile(r"^(?=(?:System|User): )", re.MULTILINE),
}


@dataclass(frozen=True)
class Prompt:
    """One prompt and its place in the held-out documents."""

    id: str
    text: str


def _prompt_at(
    tokenizer: PreTrainedTokenizerFast, document: str, start: int, ending: str
) -> str | None:
    """The text of the 48 tokens from `start`, if it re-encodes to them and ends as required.

    Texts with a mail address are left out.
    """
    ids = tokenizer.encode(document[start : start + 600], add_special_tokens=False)
    ids = ids[:PROMPT_TOKENS]
    text = str(tokenizer.decode(ids))
    fits = len(ids) == PROMPT_TOKENS and 0 not in ids and text.endswith(ending)
    if not fits or _ADDRESS.search(text):
        return None
    return text if tokenizer.encode(text, add_special_tokens=False) == ids else None


def held_out_prompts(
    tokenizer: PreTrainedTokenizerFast,
    domain: str,
    documents: list[str],
    count: int,
    seed: int = 11,
) -> list[Prompt]:
    """At most `count` different prompts; documents take turns. A `home` prompt ends where the
    answer begins."""
    ending = "\nAssistant:" if domain == "home" else ""
    rng = random.Random(f"{seed}:{domain}")
    places: list[list[int]] = []
    for document in documents:
        starts = [m.start() for m in _STARTS[domain].finditer(document)] or [0]
        rng.shuffle(starts)
        places.append(starts)
    chosen: dict[str, Prompt] = {}
    while len(chosen) < count and any(places):
        for index, starts in enumerate(places):
            if not starts or len(chosen) >= count:
                continue
            text = _prompt_at(tokenizer, documents[index], starts.pop(), ending)
            if text is not None and text not in chosen:
                chosen[text] = Prompt(f"{domain}-{len(chosen):02d}", text)
    return list(chosen.values())


def next_prompt(
    tokenizer: PreTrainedTokenizerFast, domain: str, document: str, start: int
) -> tuple[str, int] | None:
    """The first prompt that begins at a line at or after `start`, and the position of its end.

    None when there is none. A `home` prompt begins at a turn or a sentence, and ends where the
    answer begins.
    """
    begins = _SENTENCE if domain == "home" else _LINE
    ending = "\nAssistant:" if domain == "home" else ""
    for match in begins.finditer(document, start):
        text = _prompt_at(tokenizer, document, match.start(), ending)
        if text is not None:
            return text, match.start() + len(text)
    return None
