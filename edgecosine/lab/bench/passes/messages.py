"""Messages between the benchmark and llama.cpp's process, as lines of JSON.

The parent sends one `PassSetup` and reads one `Ready`; then each `Order` gets one `Times`.
llama.cpp's process, which runs in an environment without this package, reads and writes the same
fields.
"""

from __future__ import annotations

import msgspec


class PassSetup(msgspec.Struct, frozen=True):
    """The model's file, a path for the same model in Q8_0, and sizes of the KV cache."""

    source: str
    int8: str
    sessions: int
    context: int
    """Maximum tokens of a sequence."""
    threads: int


class Ready(msgspec.Struct, frozen=True):
    """The first message, after the models are loaded."""

    system: str
    """llama.cpp's description of the processor."""


class Order(msgspec.Struct, frozen=True):
    """Passes to time. The first `start` tokens of each sequence are in the cache."""

    form: str
    """`int8`: the file in Q8_0; `int4`: the model's own file."""
    flash: bool
    tokens: list[list[int]]
    start: int
    keeps_all: bool
    """Whether logits are needed after every token, or only after each sequence's last one."""
    steps: int
    """Tokens that each sequence then generates greedily, one in each pass."""
    repeats: int


class Times(msgspec.Struct, frozen=True):
    """Seconds of each repetition."""

    seconds: list[float]
