"""A process that fuzzes one target with libFuzzer, through atheris.

`python -m edgecosine.lab.fuzz.worker TARGET CORPUS [-runs=N] …`; its output is libFuzzer's, and it
ends at the first failing input. `run_fuzz.py` starts it and reads its output.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import atheris

if TYPE_CHECKING:
    from edgecosine.lab.fuzz.targets import Target

_MEASURE_EVERY = 1024
"""Memory is measured for one of this many inputs, since measuring is slow."""
_BASE_BYTES = 1 << 20
_BYTES_PER_BYTE = 256
"""Peak memory allowed for an input of no bytes, and beyond it for each byte of the input."""
_FORM_SHARE = 0.5
_UNUSABLE = (ValueError, RecursionError)


def watched(target: Target) -> Callable[[bytes], None]:
    """The target's `attempt`, which raises MemoryError when one of the measured inputs uses too
    much memory."""
    count = 0

    def attempt(data: bytes) -> None:
        nonlocal count
        count += 1
        if count % _MEASURE_EVERY:
            target.attempt(data)
            return
        tracemalloc.start()
        try:
            target.attempt(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        limit = _BASE_BYTES + _BYTES_PER_BYTE * len(data)
        if peak > limit:
            raise MemoryError(f"{len(data)} bytes of input used {peak} bytes; {limit} are allowed")

    return attempt


def mutator(target: Target) -> Callable[[bytes, int, int], bytes]:
    """A function that mutates inputs by the target's own mutations or by libFuzzer's, at random."""

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < _FORM_SHARE:
            head = target.num_head
            try:
                return (data[:head] + target.mutate(data[head:], random))[:max_size]
            except _UNUSABLE:
                pass
        return bytes(atheris.Mutate(data, max_size))

    return mutate


def main(arguments: list[str]) -> None:
    """Fuzz a target; does not return."""
    name, *options = arguments
    with atheris.instrument_imports(include=["edgecosine"]):
        from edgecosine.lab.fuzz.targets import TARGETS
    target = TARGETS[name]
    atheris.Setup([name, *options], watched(target), custom_mutator=mutator(target))
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
