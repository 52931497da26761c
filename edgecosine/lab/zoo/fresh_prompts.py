"""Hundreds of prompts of each domain, for measurements on texts by which nothing was tuned.

The recipe of the zoo and the settings of baselines were chosen by the few prompts of
`zoo.prompts()`. These ones have 48 tokens each, come from documents that their hash excludes from
training, and overlap neither each other nor those few. `python -m
edgecosine.lab.zoo.fresh_prompts` writes the file again, in minutes.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from edgecosine import zoo

FILE = Path(__file__).with_name("fresh_prompts.json.gz")
PER_DOMAIN = 600
_SEED = 29
_FIRST_HOME_SEED = 90_000
_DIALOGUES = 32_000


@cache
def fresh_prompts() -> tuple[tuple[str, str], ...]:
    """(domain, text) of all prompts; the domains take turns."""
    by_domain: dict[str, list[str]] = json.loads(gzip.decompress(FILE.read_bytes()))
    columns = [[(domain, text) for text in texts] for domain, texts in by_domain.items()]
    return tuple(itertools.chain.from_iterable(zip(*columns, strict=True)))


def collect() -> dict[str, list[str]]:
    """The prompts by domain: the same number for each domain, at most `PER_DOMAIN`.

    Raises MissingSourceError when this machine lacks the texts of a domain.
    """
    found = {domain: _domain_prompts(domain) for domain in zoo.prompts()}
    fewest = min(map(len, found.values()))
    return {domain: texts[:fewest] for domain, texts in found.items()}


def _domain_prompts(domain: str) -> list[str]:
    # transformers takes seconds to import, and only the recipe needs it.
    from edgecosine.lab.zoo.models import load_tokenizer
    from edgecosine.lab.zoo.prompts import next_prompt

    tokenizer = load_tokenizer(zoo.DIRECTORY / zoo.TARGET)
    known, chosen = zoo.prompts()[domain], dict[str, None]()
    for document in _documents(domain):
        rest = 0
        while (found := next_prompt(tokenizer, domain, document, rest)) is not None:
            text, rest = found
            if not any(text in other or other in text for other in known):
                chosen[text] = None
        if domain == "home" and len(chosen) >= PER_DOMAIN:
            break
    texts = list(chosen)
    random.Random(f"{_SEED}:{domain}").shuffle(texts)
    sys.stderr.write(f"{domain}: {len(texts)} prompts\n")
    return texts[:PER_DOMAIN]


def _documents(domain: str) -> Iterator[str]:
    """Held-out documents; those of `home` are generated without end."""
    from edgecosine.lab.zoo.corpus import CorpusSettings, domain_documents, is_held_out
    from edgecosine.lab.zoo.home import home_documents

    if domain != "home":
        yield from filter(is_held_out, domain_documents(domain, CorpusSettings()))
        return
    for seed in itertools.count(_FIRST_HOME_SEED):
        yield from filter(is_held_out, home_documents(_DIALOGUES, seed))


if __name__ == "__main__":
    FILE.write_bytes(gzip.compress(json.dumps(collect()).encode(), mtime=0))
