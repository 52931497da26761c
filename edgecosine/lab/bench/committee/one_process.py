"""The reference of a committee: one process that averages whole distributions.

It has no lists, bounds or messages: it reads whole rows from the engines, mixes them in float64 and
draws with the sampler of a single model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgecosine.engine.base import JudgeWork, MemberEngine, RowLists, Wanted
from edgecosine.engine.loading.load import load_target
from edgecosine.engine.options import LoadOptions
from edgecosine.engine.sampling import draw
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.tree import EMPTY_TREE

_KEY = "reference"
_WHOLE = Wanted(is_dense=True)


class OneProcess:
    """Models of a committee in this process, with one weight each."""

    def __init__(self, models: Sequence[str], weights: Sequence[float]) -> None:
        loaded = [load_target(LoadOptions(model, threads=1, slots=1)) for model in models]
        self._engines: list[MemberEngine] = [engine for engine, _ in loaded]
        self._weights = weights
        codec = loaded[0][1].codec
        assert codec is not None
        self._codec = codec

    def text(self, prompt: str, sampling: Sampling, max_tokens: int) -> str:
        """The answer to a prompt, of exactly `max_tokens` tokens."""
        tokens = self._codec.encode(prompt)
        answer = list[int]()
        while len(answer) < max_tokens:
            whole = [*tokens, *answer]
            answer.append(draw(self._row(whole), len(whole), sampling, answer, tokens))
        for engine in self._engines:
            engine.release(_KEY)
        return self._codec.decode(answer)

    def _row(self, tokens: Sequence[int]) -> torch.Tensor:
        """Logarithm of the mean distribution [vocabulary], float64."""
        work = JudgeWork(_KEY, tokens, len(tokens), EMPTY_TREE, Sampling(), wanted=_WHOLE)
        rows = [torch.from_numpy(_lists(engine, work).also[0]).double() for engine in self._engines]
        parts = zip(self._weights, rows, strict=True)
        mean: torch.Tensor = sum(
            (weight * torch.softmax(row, 0) for weight, row in parts), torch.zeros(1)
        )
        return mean.log()


def _lists(engine: MemberEngine, work: JudgeWork) -> RowLists:
    while True:
        [outcome] = engine.step([work]).outcomes
        if isinstance(outcome, RowLists):
            return outcome
