"""Sources of the text of an answer: runs of characters, each by the target or by drafters.

A token that a drafter proposed and the target accepted is that drafter's; a token of several has
their names joined by `+`. A token that the target drew itself has the empty name.
"""

from __future__ import annotations

from collections.abc import Iterable

Run = tuple[int, str]
"""A number of characters and their origin."""
Origins = tuple[Run, ...]


def joined(runs: Iterable[Run]) -> Origins:
    """The runs without empty ones; neighbours of one origin are one run."""
    found: list[Run] = []
    for length, name in runs:
        if not length:
            continue
        if found and found[-1][1] == name:
            found[-1] = (found[-1][0] + length, name)
        else:
            found.append((length, name))
    return tuple(found)


def cut(runs: Iterable[Run], start: int, end: int) -> Origins:
    """The runs of the characters from `start` up to `end`; beyond the last run, the target's."""
    found: list[Run] = []
    at = 0
    for length, name in runs:
        found.append((max(0, min(at + length, end) - max(at, start)), name))
        at += length
    found.append((max(0, end - max(at, start)), ""))
    return joined(found)


class TokenOrigins:
    """The origins of one answer's tokens, handed out with its text."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._num_shown = 0
        """Characters whose origin was handed out."""
        self._first = 0
        """Number of tokens whose characters were all handed out."""

    def add(self, names: Iterable[str]) -> None:
        """Add the origins of further tokens."""
        self._names.extend(names)

    def take(self, ends: list[int], num_characters: int) -> Origins:
        """The origins of the next characters; token i ends before character `ends[i]`."""
        start, end = self._num_shown, self._num_shown + num_characters
        self._num_shown = end
        runs, at = list[Run](), start
        for token in range(self._first, min(len(ends), len(self._names))):
            if at >= end:
                break
            until = max(at, min(end, ends[token]))
            runs.append((until - at, self._names[token]))
            at = until
            if ends[token] <= at:
                self._first = token + 1
        # Bytes of an incomplete character at the end of an answer belong to its last token.
        runs.append((end - at, self._names[-1] if self._names else ""))
        return joined(runs)
