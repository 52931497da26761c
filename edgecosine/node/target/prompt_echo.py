"""The prompt as the beginning of an answer: `echo` of the completion API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from edgecosine.engine.tokenizer import Detokenizer, TextCodec
from edgecosine.protocol.api.request import Logprobs, Request
from edgecosine.protocol.api.result import Choice, ScoredToken, TokenLogprobs, scored_token


class PromptEcho:
    """The text of one prompt and, where log-probabilities are requested, those of its tokens."""

    def __init__(self, request: Request, codec: TextCodec, prompt: Sequence[int]) -> None:
        self._codec, self._prompt = codec, prompt
        self._scores: list[TokenLogprobs] = []
        self._has_logprobs = request.top_logprobs is not None
        assert isinstance(request.prompt, str)
        self.text = request.prompt or codec.decode(prompt)

    @property
    def wants_scores(self) -> bool:
        """Whether the prompt is to be scored, and is not yet."""
        return self._has_logprobs and not self._scores

    def score(self, logprobs: Sequence[Logprobs]) -> None:
        """Set the log-probabilities of the prompt's tokens from the second on."""
        if not self._has_logprobs:
            return
        text = Detokenizer(self._codec)
        first = ScoredToken(*self._codec.spelling(self._prompt[0]), None)
        self._scores = [TokenLogprobs(first, (), 0)]
        for (before, token), scored in zip(pairwise(self._prompt), logprobs, strict=True):
            text.push([before])
            self._scores.append(scored_token(self._codec.spelling, token, scored, len(text.text)))

    def before(self, choice: Choice) -> Choice:
        """The choice with the prompt before it."""
        logprobs = choice.logprobs
        if logprobs is not None:
            moved = [replace(one, text_offset=one.text_offset + len(self.text)) for one in logprobs]
            logprobs = (*self._scores, *moved)
        return replace(choice, text=self.text + choice.text, logprobs=logprobs)
