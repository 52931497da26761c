"""Mutations that keep the format of valid inputs, so that they pass the first checks.

Mutated bytes are seldom valid JSON or msgpack; here the decoded value is mutated and encoded again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]

from edgecosine.protocol.wire.framing import HEADER_BYTES

Mutation = Callable[[bytes, Random], bytes]
"""Mutates an input; raises ValueError when the input does not have the format."""

_DEEP: Final = 2000
_PLAIN: Final[tuple[Any, ...]] = (
    None, True, False, 0, 1, -1, 255, 256, 1 << 31, -(1 << 31), (1 << 53) - 1, 1 << 63,
    (1 << 64) - 1, -(1 << 63), 0.0, -0.0, 0.5, 1e308, float("nan"), float("inf"), float("-inf"),
    "", " ", "x", "x" * 65, "x" * 257, "x" * 1025, "\0", "ä€😀", "a/b", "../", "#", "+", "$SYS",
    [], {}, [[]], [None], {"": None}, [[[[[[[[[[]]]]]]]]]], [0] * 300,
)  # fmt: skip
_JSON_ONLY: Final = (1 << 64, 10**400, "\ud800", {"text": "x"}, [{"role": "user"}])
_MSGPACK_ONLY: Final = (b"", b"\0", bytes(3), bytes(8), bytes(257), b"\xff" * 64, {1: 2})


def mutate_json(data: bytes, random: Random) -> bytes:
    """Mutate the JSON value of the input."""
    if random.random() < 0.01:
        return _nested(data, random)
    changed = _change(json.loads(data), random, _PLAIN + _JSON_ONLY)
    return json.dumps(changed, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")


def mutate_msgpack(data: bytes, random: Random) -> bytes:
    """Mutate the msgpack value of the input."""
    changed = _change(_unpack(data), random, _PLAIN + _MSGPACK_ONLY)
    try:
        packed: bytes = msgpack.packb(changed, use_bin_type=True)
    except OverflowError as error:
        raise ValueError("an integer that msgpack cannot encode") from error
    return packed


def mutate_frames(data: bytes, random: Random) -> bytes:
    """Mutate, omit, repeat, swap or truncate one of the frames, or give it a wrong length."""
    frames = list(_frames(data))
    if not frames:
        raise ValueError("no frames")
    index, other = random.randrange(len(frames)), random.randrange(len(frames))
    match random.randrange(6):
        case 0:
            del frames[index]
        case 1:
            frames.insert(other, frames[index])
        case 2:
            frames[index], frames[other] = frames[other], frames[index]
        case 3:
            size = random.choice((0, 1, 255, 1 << 18, (1 << 18) + 1, 1 << 21, (1 << 32) - 1))
            frames[index] = size.to_bytes(HEADER_BYTES, "big") + frames[index][HEADER_BYTES:]
        case 4:
            frames[index] = frames[index][: random.randrange(len(frames[index]))]
        case _:
            frames[index] = _framed(mutate_msgpack(frames[index][HEADER_BYTES:], random))
    return b"".join(frames)


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Flip, cut, repeat or insert bytes anywhere, as fuzzing engines do."""
    at, end = sorted((random.randint(0, len(data)), random.randint(0, len(data))))
    match random.randrange(4):
        case 0:
            return data[:at] + random.randbytes(random.randint(1, 8)) + data[at:]
        case 1:
            return data[:at] + data[end:]
        case 2:
            return data[:end] + data[at:]
        case _:
            flipped = bytes(byte ^ 1 << random.randrange(8) for byte in data[at : at + 2])
            return data[:at] + flipped + data[at + 2 :]


def _change(value: Any, random: Random, hostile: tuple[Any, ...]) -> Any:
    """The value with one change at a random position, more likely near its leaves."""
    if not isinstance(value, (list, dict)) or not value or random.random() < 0.1:
        return _leaf(value, random, hostile)
    changed = value.copy()
    keys = list(range(len(value))) if isinstance(value, list) else list(value)
    key = random.choice(keys)
    match random.randrange(8):
        case 0:
            del changed[key]
        case 1:
            changed[key] = value[random.choice(keys)]
        case 2 if isinstance(changed, list):
            changed.insert(random.randint(0, len(changed)), random.choice(hostile))
        case 2 if isinstance(changed, dict):
            changed[random.choice(("", "x", "id", "type"))] = value[key]
        case _:
            changed[key] = _change(value[key], random, hostile)
    return changed


def _leaf(value: Any, random: Random, hostile: tuple[Any, ...]) -> Any:
    chance = random.random()
    if chance < 0.3 and type(value) is int:
        return value + random.choice((-1, 1, 1 << random.randrange(33)))
    if chance < 0.3 and isinstance(value, bytes):
        return mutate_bytes(value, random)
    if chance < 0.3 and isinstance(value, str):
        return mutate_bytes(value.encode("utf-8", "replace"), random).decode("utf-8", "replace")
    return random.choice(hostile)


def _nested(data: bytes, random: Random) -> bytes:
    """The object with one more field of deep nesting, which is not closed."""
    opening = random.choice((b"[", b'{"x":'))
    return data.rstrip()[:-1] + b',"x":' + opening * _DEEP


def _unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError("not msgpack") from error


def _framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


def _frames(data: bytes) -> list[bytes]:
    frames = []
    while len(data) > HEADER_BYTES:
        end = HEADER_BYTES + int.from_bytes(data[:HEADER_BYTES], "big")
        frames.append(data[:end])
        data = data[end:]
    return frames
