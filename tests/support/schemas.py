"""Random JSON schemas whose answers are short."""

from __future__ import annotations

import random
import string
from typing import Any

_PATTERNS = ("^[a-f]{2,6}$", "^(yes|no|maybe)$", "^[0-9]{4}-[0-9]{2}$", "^x+y?$")
_NAMES = ("name", "age", "tags", "is open", "über", "value", "kind", "items")


def random_schema(chance: random.Random, depth: int = 2) -> dict[str, Any]:
    """A schema that some text matches; `depth` levels of objects and arrays."""
    kinds = [_string, _integer, _choice, _simple]
    if depth:
        kinds += [_object, _object, _array, _any_of]
    return chance.choice(kinds)(chance, depth)


def _string(chance: random.Random, _: int) -> dict[str, Any]:
    if chance.random() < 0.3:
        return {"type": "string", "pattern": chance.choice(_PATTERNS), "maxLength": 9}
    if chance.random() < 0.2:
        return {"type": "string", "format": chance.choice(("date", "uuid", "ipv4"))}
    shortest = chance.randrange(3)
    return {"type": "string", "minLength": shortest, "maxLength": shortest + chance.randrange(9)}


def _integer(chance: random.Random, _: int) -> dict[str, Any]:
    low = chance.randrange(-1000, 1000)
    return {"type": "integer", "minimum": low, "maximum": low + chance.randrange(10**6)}


def _choice(chance: random.Random, _: int) -> dict[str, Any]:
    values = [1, "two", None, True, "".join(chance.choices(string.printable, k=4)), {"a": [0]}]
    if chance.random() < 0.3:
        return {"const": chance.choice(values)}
    return {"enum": chance.sample(values, chance.randrange(1, 5))}


def _simple(chance: random.Random, _: int) -> dict[str, Any]:
    return {"type": chance.choice(("boolean", "null"))}


def _object(chance: random.Random, depth: int) -> dict[str, Any]:
    names = chance.sample(_NAMES, chance.randrange(1, 4))
    return {
        "type": "object",
        "properties": {name: random_schema(chance, depth - 1) for name in names},
        "required": chance.sample(names, chance.randrange(len(names) + 1)),
        "additionalProperties": False,
    }


def _array(chance: random.Random, depth: int) -> dict[str, Any]:
    fewest = chance.randrange(2)
    return {
        "type": "array",
        "items": random_schema(chance, depth - 1),
        "minItems": fewest,
        "maxItems": fewest + chance.randrange(3),
    }


def _any_of(chance: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(chance, depth - 1) for _ in range(chance.randrange(1, 4))]}
