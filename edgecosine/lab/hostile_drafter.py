"""Drafters that do harm on purpose, in three ways. They run honest models, so their drafts cost as
much as honest ones, and only verification results and delays reveal them.

wrong    replaces every token of the model by another one and keeps the model's confidence
turning  is honest for 200 draft tokens, wrong for the next 200, and so on
late     sends honest drafts as late as the target still uses them: the delay grows while tokens of
         its drafts are committed, and shrinks when none is
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

from edgecosine.engine.base import DraftEngine, DraftResult, DraftWork, never

Harm = Literal["wrong", "turning", "late"]
HARMS: tuple[Harm, ...] = get_args(Harm)

TURN_TOKENS = 200
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.002, 1.0
_LATER, _SOONER = 1.2, 0.8
_MOST_REQUESTS = 256


class HostileDrafter:
    """A `DraftEngine` that wraps an honest one and spoils its drafts."""

    def __init__(
        self,
        honest: DraftEngine,
        harm: Harm,
        num_vocabulary: int,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._honest, self._harm, self._num_vocabulary = honest, harm, num_vocabulary
        self._sleep = sleep
        self._num_drafted = 0
        self._delay_s = _FIRST_DELAY_S
        self._proposed: OrderedDict[str, tuple[int, frozenset[int]]] = OrderedDict()
        """By request: the number of tokens before the last draft, and the draft's first tokens."""

    def draft(
        self, batch: Sequence[DraftWork], is_interrupted: Callable[[int], bool] = never
    ) -> list[DraftResult]:
        """Drafts of the honest engine, spoiled or delayed."""
        results = self._honest.draft(batch, is_interrupted)
        if self._harm == "late":
            self._wait(batch, results)
            return results
        return [self._falsified(result) for result in results]

    def release(self, key: str) -> None:
        """End a request."""
        self._proposed.pop(key, None)
        self._honest.release(key)

    def _falsified(self, result: DraftResult) -> DraftResult:
        tokens = []
        for token in result.tokens:
            is_wrong = self._harm == "wrong" or self._num_drafted // TURN_TOKENS % 2
            tokens.append((token + 1) % self._num_vocabulary if is_wrong else token)
            self._num_drafted += 1
        return replace(result, tokens=tuple(tokens))

    def _wait(self, batch: Sequence[DraftWork], results: Sequence[DraftResult]) -> None:
        awaited = [
            (work, result)
            for work, result in zip(batch, results, strict=True)
            if work.ahead is None and result.is_complete
        ]
        if not awaited:
            return
        for work, result in awaited:
            if (former := self._proposed.pop(work.key, None)) is not None:
                place, firsts = former
                was_in_time = len(work.tokens) > place + 1 and work.tokens[place] in firsts
                changed_s = self._delay_s * (_LATER if was_in_time else _SOONER)
                self._delay_s = min(max(changed_s, _FIRST_DELAY_S), _LONGEST_DELAY_S)
            self._proposed[work.key] = len(work.tokens), _firsts(result)
        while len(self._proposed) > _MOST_REQUESTS:
            self._proposed.popitem(last=False)
        self._sleep(self._delay_s)


def _firsts(result: DraftResult) -> frozenset[int]:
    parents = result.parents or range(-1, len(result.tokens) - 1)
    return frozenset(
        token for token, parent in zip(result.tokens, parents, strict=True) if parent == -1
    )
