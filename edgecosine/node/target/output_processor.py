"""Turns committed tokens into text, finds the end of the answer, and decides what may be sent.

Text that may be the beginning of a stop string is held back until it is final.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from edgecosine.engine.tokenizer import Detokenizer, TextCodec
from edgecosine.protocol.api.request import FinishReason, Logprobs, Request
from edgecosine.protocol.api.result import Choice, TokenLogprobs, scored_token


class OutputProcessor:
    """Takes committed tokens one round at a time and detokenizes them as text after `prompt`."""

    def __init__(
        self,
        request: Request,
        codec: TextCodec,
        prompt: Sequence[int] = (),
        shown: Collection[str] = (),
    ) -> None:
        """`shown` are names of special tokens that are part of the text."""
        self._request, self._codec = request, codec
        eos_tokens = frozenset[int]() if request.ignore_eos else codec.eos_tokens
        # A special token has no text, so its name as a stop string means the token.
        named = {codec.special_token(stop) for stop in request.stop} - {None}
        self._end_tokens = eos_tokens.union(request.sampling.stop_token_ids, named)
        ids = {codec.special_token(name): name for name in shown}
        names = {token: name for token, name in ids.items() if token is not None}
        self._detokenizer = Detokenizer(codec, prompt, shown=names)
        self._num_final = 0
        self._unread: list[int] = []
        """Tokens of this round that have not been converted yet."""
        self._reads_singly = (
            bool(request.stop) or request.origins or (request.top_logprobs is not None)
        )
        """Whether it matters where the text of each token ends."""
        self._exempt = 0
        """Characters of the first `min_tokens` tokens, in which no stop string may end."""
        self._logprobs: list[TokenLogprobs] = []
        self.tokens: list[int] = []
        self.text = ""
        self.ends: list[int] = []
        """Characters of the text up to the end of each token, if the request asks for origins; more
        than there are after a cut."""
        self.finish_reason: FinishReason | None = None

    @property
    def room(self) -> int:
        """Tokens that the answer may still have."""
        return self._request.max_tokens - len(self.tokens)

    def push(self, tokens: Sequence[int], logprobs: Sequence[Logprobs] = ()) -> str:
        """Add a round's tokens up to the end of the answer; returns the text that became final.

        `logprobs` has an entry for each token if the request asks for them.
        """
        for number, token in enumerate(tokens):
            if not self.room:  # of an answer that is the prompt alone
                self.finish_reason = "length"
                break
            if token in self._end_tokens and not self._is_exempt:
                self.finish_reason = "stop"
                break
            if self._request.top_logprobs is not None:
                spelling, offset = self._codec.spelling, len(self.text)
                self._logprobs.append(scored_token(spelling, token, logprobs[number], offset))
            self.tokens.append(token)
            self._unread.append(token)
            if self._reads_singly and self._read():
                break
            if not self.room:
                self.finish_reason = "length"
                break
        self._read()
        if self.finish_reason and not self._is_cut:
            self.text += self._detokenizer.finish()
            self._cut_at_stop()
        return self._final_text()

    def _read(self) -> bool:
        """Convert the unread tokens; returns whether a stop string cut their text."""
        if not self._unread:
            return False
        self.text += self._detokenizer.push(self._unread)
        self._unread.clear()
        self.ends.append(len(self.text))
        if len(self.tokens) <= self._request.sampling.min_tokens:
            self._exempt = len(self.text)
        return self._cut_at_stop()

    def choice(self) -> Choice:
        """The complete answer, after its end; includes tokens whose text a stop string cut."""
        assert self.finish_reason is not None
        wants = self._request.top_logprobs is not None
        logprobs = tuple(self._logprobs) if wants else None
        return Choice(self.text, tuple(self.tokens), self.finish_reason, logprobs)

    @property
    def _is_exempt(self) -> bool:
        """Whether the answer has fewer than `min_tokens` tokens."""
        return len(self.tokens) < self._request.sampling.min_tokens

    @property
    def _is_cut(self) -> bool:
        return len(self.text) < len(self._detokenizer.text)

    def _cut_at_stop(self) -> bool:
        if not self._request.stop:
            return False
        found = [
            self.text.find(stop, max(0, self._exempt + 1 - len(stop)))
            for stop in self._request.stop
        ]
        cuts = [at for at in found if at >= 0]
        if not cuts:
            return False
        self.text = self.text[: min(cuts)]
        self.finish_reason = "stop"
        return True

    def _final_text(self) -> str:
        end = len(self.text)
        if self.finish_reason is None:
            end -= self._held_back()
        piece = self.text[self._num_final : end]
        self._num_final = max(self._num_final, end)
        return piece

    def _held_back(self) -> int:
        """Number of last characters that may be the beginning of a stop string."""
        longest = min(len(self.text), max(map(len, self._request.stop), default=1) - 1)
        for size in range(longest, 0, -1):
            tail = self.text[-size:]
            if any(stop.startswith(tail) for stop in self._request.stop):
                return size
        return 0
