"""The text of one answer: committed tokens go in; deltas, and the choice at its end, come out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgecosine.engine.dialect import PLAIN, Dialect
from edgecosine.engine.tokenizer import MAX_CONTEXT, TextCodec
from edgecosine.node.target.answer_channels import AnswerChannels
from edgecosine.node.target.output_processor import OutputProcessor
from edgecosine.node.target.prompt_echo import PromptEcho
from edgecosine.protocol.api.origins import TokenOrigins
from edgecosine.protocol.api.request import NOTHING, Committed, Logprobs, Request
from edgecosine.protocol.api.result import Choice, Delta


class AnswerText:
    """Detokenizes an answer, finds its end and divides it into channels."""

    def __init__(
        self,
        request: Request,
        codec: TextCodec,
        prompt: Sequence[int],
        dialect: Dialect = PLAIN,
        *,
        in_reasoning: bool = False,
    ) -> None:
        """`in_reasoning`: the prompt opened the reasoning."""
        self._resumed = request.resumed
        self._echo = PromptEcho(request, codec, prompt) if request.echo else None
        self._output = OutputProcessor(request, codec, prompt[-MAX_CONTEXT:], dialect.all_marks)
        self._channels = AnswerChannels(request, dialect, in_reasoning=in_reasoning)
        # Tags between channels would make the numbers of characters wrong.
        wants_origins = request.origins and not self._channels.divides
        self._origins = TokenOrigins() if wants_origins else None
        self._unsent = ""
        """Final text that was not taken yet."""
        self._num_deltas = 0
        self._num_taken = len(request.resumed.tokens)
        """Tokens that need not be taken any more."""
        self.tokens: list[int] = []
        """All committed tokens, also those that the end of the answer cuts off."""
        self._logprobs: list[Logprobs] = []
        """Of all committed tokens, if the request asks for them."""

    @property
    def is_over(self) -> bool:
        """Whether the answer has ended."""
        return self._output.finish_reason is not None

    @property
    def room(self) -> int:
        """Tokens that the answer may still have."""
        return self._output.room

    @property
    def wants_scores(self) -> bool:
        """Whether `score` needs the log-probabilities of the prompt."""
        return self._echo is not None and self._echo.wants_scores

    def score(self, prompt_logprobs: Sequence[Logprobs]) -> None:
        """Add the log-probabilities of the prompt to its echo."""
        if self._echo is not None:
            self._echo.score(prompt_logprobs)

    def open(self) -> list[Delta]:
        """The echo of the prompt, and the text of tokens committed before a restart."""
        deltas = list[Delta]()
        if self._echo is not None and self._echo.text:
            deltas.append(Delta(0, self._echo.text))
            self._num_deltas = 1
        tokens = self._resumed.tokens
        self.add(tokens, self._resumed.logprobs, [""] * len(tokens))
        return [*deltas, *self._new_deltas()] if self._unsent else deltas

    def add(
        self, tokens: Sequence[int], logprobs: Sequence[Logprobs], guessed_by: Iterable[str]
    ) -> None:
        """Add committed tokens, each with the drafters that guessed it."""
        self.tokens += tokens
        self._logprobs += logprobs
        if self._origins is not None:
            self._origins.add(guessed_by)
        self._unsent += self._output.push(tokens, logprobs)

    @property
    def has_more(self) -> bool:
        """Whether there are tokens that `take` has not returned."""
        return len(self.tokens) > self._num_taken

    def take(self) -> Sequence[Delta | Committed]:
        """The text that became final and the tokens, since the last call."""
        start, self._num_taken = self._num_taken, len(self.tokens)
        tokens = Committed(tuple(self.tokens[start:]), tuple(self._logprobs[start:]))
        return self._new_deltas(tokens) or [tokens]

    def choice(self) -> Choice:
        """The complete answer, after its end."""
        choice = self._channels.divide(self._output.choice())
        return choice if self._echo is None else self._echo.before(choice)

    def _new_deltas(self, committed: Committed = NOTHING) -> list[Delta]:
        """The new text by channel, `committed` with the first part."""
        text, self._unsent = self._unsent, ""
        origins = () if self._origins is None else self._origins.take(self._output.ends, len(text))
        pieces = self._channels.push(text, is_last=self.is_over)
        first = self._num_deltas
        self._num_deltas += len(pieces)
        return [
            Delta(
                number,
                piece,
                channel=channel,
                committed=committed if number == first else NOTHING,
                origins=origins,
            )
            for number, (channel, piece) in enumerate(pieces, first)
        ]
