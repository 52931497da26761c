"""Compiles grammars in a child process first, which can be stopped.

llguidance decides whether a lexeme matches any text at all before its own limits apply, which takes
endless time and memory for some intersections of patterns; a compile in a thread cannot be ended.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import weakref
from typing import Final

import msgspec

from edgecosine.engine.grammar_compiler import (
    TokenizerText,
    compiled,
    load_tokenizer,
    reason_of,
)
from edgecosine.errors import EngineError

MAX_COMPILE_S: Final = 1.0
MAX_COMPILE_BYTES: Final = 2 << 30
"""Address space of the child, which has 0.2 GiB before its first grammar."""
_TOO_COMPLEX: Final = (
    f"it takes more than {MAX_COMPILE_S:.0f} s or {MAX_COMPILE_BYTES >> 30} GiB to compile"
)


class GrammarTrial:
    """The parent's side. The child starts with the first grammar, and again after one that ended
    it; it ends with this object or its process."""

    def __init__(self, tokenizer: TokenizerText) -> None:
        self._tokenizer = tokenizer
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()

    def fault(self, source: str) -> str:
        """Why a grammar cannot be compiled, with the library's words; empty if it can be. Slow: not
        for the event loop.

        Raises EngineError.
        """
        with self._turn:
            process = self._process or self._start()
            timer = threading.Timer(MAX_COMPILE_S, process.kill)
            timer.start()
            try:
                reply = _ask(process, source)
            finally:
                timer.cancel()
            if reply is None:
                self._finalizer()
                self._process = None
                return _TOO_COMPLEX
            return reply

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._finalizer = weakref.finalize(self, _end, process)
        # Reading modules and the tokenizer is not a grammar's time.
        if _ask(process, self._tokenizer) is None:
            self._finalizer()
            raise EngineError("the process that compiles grammars did not start; see above")
        self._process = process
        return process


def _ask(process: subprocess.Popen[bytes], source: str | TokenizerText) -> str | None:
    """The child's reply; None if it ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(msgspec.json.encode(source) + b"\n")
        process.stdin.flush()
    line = process.stdout.readline()
    return msgspec.json.decode(line, type=str) if line.endswith(b"\n") else None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    # What was not written before the kill is discarded.
    with contextlib.suppress(BrokenPipeError):
        process.communicate()


def _run_child() -> None:
    """Read the tokenizer, then reply to each grammar with the reason against it, in JSON lines."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MAX_COMPILE_BYTES, MAX_COMPILE_BYTES))
    orders, replies = sys.stdin.buffer, sys.stdout.buffer
    tokenizer = load_tokenizer(msgspec.json.decode(orders.readline(), type=TokenizerText))
    reply = ""
    while True:
        replies.write(msgspec.json.encode(reply) + b"\n")
        replies.flush()
        if not (line := orders.readline()):
            return
        matcher = compiled(tokenizer, msgspec.json.decode(line, type=str))
        reply = reason_of(matcher) if matcher.is_error() else ""


if __name__ == "__main__":
    _run_child()
